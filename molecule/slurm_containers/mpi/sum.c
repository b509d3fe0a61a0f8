/* Every rank adds its number + 1, of a buffer that is large enough for every path of the transport. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    int rank, size, length, count = 1 << 20;
    char name[MPI_MAX_PROCESSOR_NAME];
    double *mine = malloc(count * sizeof *mine), *sum = malloc(count * sizeof *sum);

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(name, &length);
    for (int i = 0; i < count; i++)
        mine[i] = rank + 1;
    MPI_Allreduce(mine, sum, count, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    printf("rank %d of %d on %s: %g %g\n", rank, size, name, sum[0], sum[count - 1]);
    MPI_Finalize();
    return 0;
}
