// Which core each of the threads runs on that compute together.
#include <cerrno>

#include <sched.h>

#include "api.h"
#include "team.h"

// The calling thread goes to the first of `count` cores, each thread that it computes with to the next one. 0, or the
// error of one that could not.
TANDEM_API int32_t tandem_place_team(const int32_t* cores, int32_t count) {
    std::atomic<int32_t> error{0};
#pragma omp parallel num_threads(count)
    {
        cpu_set_t core;
        CPU_ZERO(&core);
        CPU_SET(cores[omp_get_thread_num()], &core);
        if (sched_setaffinity(0, sizeof core, &core) != 0) error = errno;
    }
    return error;
}
