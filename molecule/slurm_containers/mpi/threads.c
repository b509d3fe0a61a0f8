/* How many threads OpenMP makes, and how many processors they may run on. */
#define _GNU_SOURCE
#include <omp.h>
#include <sched.h>
#include <stdio.h>

int main(void)
{
    cpu_set_t processors;
    int threads = 0;

#pragma omp parallel reduction(+ : threads)
    threads++;
    sched_getaffinity(0, sizeof processors, &processors);
    printf("%d %d\n", threads, CPU_COUNT(&processors));
    return 0;
}
