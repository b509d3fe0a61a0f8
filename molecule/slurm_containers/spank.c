/* A SPANK plugin that gives tasks a variable with its argument. */
#include <slurm/spank.h>

SPANK_PLUGIN(greeting, 1)

int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
    return spank_setenv(spank, "GREETING", argc ? argv[0] : "none", 1);
}
