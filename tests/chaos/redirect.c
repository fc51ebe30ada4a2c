/* Loaded into every process under supervisord (LD_PRELOAD): who connects to the unix socket of another service is
   connected to the link between the two, where there is one. A link is the socket $CHAOS_LINKS/PROGRAM-SERVICE;
   PROGRAM is what supervisord calls this process. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef int (*connect_type)(int, const struct sockaddr *, socklen_t);

/* Whether there is a link to what `path` names; then it is in `link`. */
static int find_link(const char *path, struct sockaddr_un *link) {
    const char *links = getenv("CHAOS_LINKS");
    const char *program = getenv("SUPERVISOR_PROCESS_NAME");
    const char *name = strrchr(path, '/');
    const char *suffix = strstr(path, ".sock");
    if (links == NULL || program == NULL || name == NULL || suffix == NULL || suffix < name)
        return 0;
    link->sun_family = AF_UNIX;
    int length = snprintf(link->sun_path, sizeof link->sun_path, "%s/%s-%.*s", links, program,
                          (int)(suffix - name - 1), name + 1);
    return length > 0 && (size_t)length < sizeof link->sun_path && access(link->sun_path, F_OK) == 0;
}

int connect(int fd, const struct sockaddr *address, socklen_t length) {
    connect_type original = (connect_type)dlsym(RTLD_NEXT, "connect");
    struct sockaddr_un link;
    if (address != NULL && address->sa_family == AF_UNIX && length > offsetof(struct sockaddr_un, sun_path)) {
        size_t bytes = length - offsetof(struct sockaddr_un, sun_path);
        char path[sizeof link.sun_path + 1] = {0};
        memcpy(path, address->sa_data, bytes < sizeof link.sun_path ? bytes : sizeof link.sun_path);
        if (find_link(path, &link))
            return original(fd, (const struct sockaddr *)&link, sizeof link);
    }
    return original(fd, address, length);
}
