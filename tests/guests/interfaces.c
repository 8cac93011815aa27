/* Tells the interfaces of the network and their addresses, as the C library finds them out; and what it makes of a
   name if only addresses of a kind that there are on an interface are wanted. */
#include "guest.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <sys/ioctl.h>

#define NETLINK 16

static void interfaces(void) {
    struct ifaddrs *all;
    if (getifaddrs(&all) != 0) {
        tell("getifaddrs: %s\n", strerrorname(errno));
        return;
    }
    for (struct ifaddrs *one = all; one != NULL; one = one->ifa_next) {
        char text[64], mask[64];
        int family = one->ifa_addr == NULL ? 0 : one->ifa_addr->sa_family;
        if (family != AF_INET && family != AF_INET6)
            continue;
        const struct sockaddr_in6 *v6 = (void *)one->ifa_addr, *mask_v6 = (void *)one->ifa_netmask;
        const struct sockaddr_in *v4 = (void *)one->ifa_addr, *mask_v4 = (void *)one->ifa_netmask;
        inet_ntop(family, family == AF_INET ? (void *)&v4->sin_addr : (void *)&v6->sin6_addr, text, sizeof text);
        inet_ntop(family, family == AF_INET ? (void *)&mask_v4->sin_addr : (void *)&mask_v6->sin6_addr, mask, sizeof mask);
        tell("%s %s %s%s%s\n", one->ifa_name, text, mask, one->ifa_flags & IFF_UP ? " up" : "",
             one->ifa_flags & IFF_LOOPBACK ? " loopback" : "");
    }
    freeifaddrs(all);
    struct if_nameindex *names = if_nameindex();
    for (int i = 0; names != NULL && names[i].if_index != 0; i++)
        tell("%u %s\n", names[i].if_index, names[i].if_name);
    if_freenameindex(names);
}

/* One by one, as older programs ask. */
static void requests(void) {
    struct ifreq request = {.ifr_name = "lo"};
    char name[IF_NAMESIZE] = "?";
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    tell("index %u, none %u\n", if_nametoindex("lo"), if_nametoindex("gone"));
    tell("name %s, none %d\n", if_indextoname(1, name), if_indextoname(99, name) == NULL);
    tell_result("flags", ioctl(fd, SIOCGIFFLAGS, &request));
    tell("%#x\n", request.ifr_flags);
    tell_result("address", ioctl(fd, SIOCGIFADDR, &request));
    tell("%d %s\n", request.ifr_addr.sa_family, inet_ntoa(((struct sockaddr_in *)&request.ifr_addr)->sin_addr));
    tell_result("hardware", ioctl(fd, SIOCGIFHWADDR, &request));
    tell("%d %d\n", request.ifr_hwaddr.sa_family, request.ifr_hwaddr.sa_data[0]);
    tell_result("mtu", ioctl(fd, SIOCGIFMTU, &request));
    tell("%d\n", request.ifr_mtu);
    strcpy(request.ifr_name, "gone");
    tell_result("none", ioctl(fd, SIOCGIFMTU, &request));
    tell_result("nowhere", ioctl(fd, SIOCGIFMTU, NULL));
    close(fd);
}

static void configured(void) {
    for (int family = 0; family < 2; family++) {
        struct addrinfo hints = {.ai_flags = AI_ADDRCONFIG, .ai_family = family ? AF_INET6 : AF_INET,
                                 .ai_socktype = SOCK_STREAM};
        struct addrinfo *found;
        int error = getaddrinfo(family ? "2001:db8::1" : "192.0.2.1", "80", &hints, &found);
        tell("version %d: %s\n", family ? 6 : 4, error == 0 ? "has addresses" : gai_strerror(error));
        if (error == 0)
            freeaddrinfo(found);
    }
}

/* A listener on every address. */
static void listeners(void) {
    struct ifaddrs *all;
    if (getifaddrs(&all) != 0)
        return;
    for (struct ifaddrs *one = all; one != NULL; one = one->ifa_next) {
        int family = one->ifa_addr == NULL ? 0 : one->ifa_addr->sa_family;
        if (family != AF_INET && family != AF_INET6)
            continue;
        int fd = socket(family, SOCK_STREAM, 0);
        socklen_t bytes = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
        tell_result("bind", bind(fd, one->ifa_addr, bytes));
        tell_result("listen", listen(fd, 1));
        close(fd);
    }
    freeifaddrs(all);
}

/* The socket itself, as Linux has it too. */
static void calls(void) {
    unsigned char answered[8192];
    struct {
        uint16_t family, pad;
        uint32_t number, groups;
    } own = {.family = NETLINK}, kernel = {.family = NETLINK};
    socklen_t bytes = sizeof own;
    tell_result("a stream", socket(NETLINK, SOCK_STREAM, 0) < 0 && errno == ESOCKTNOSUPPORT ? 0 : 1);
    int fd = socket(NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
    tell("socket: %d\n", fd >= 0);
    tell_result("getsockname", getsockname(fd, (void *)&own, &bytes));
    tell("%u bytes, family %d, number %u\n", bytes, own.family, own.number);
    tell_result("bind", bind(fd, (void *)&own, sizeof own));
    tell_result("getsockname", getsockname(fd, (void *)&own, &bytes));
    tell("it is the process's: %d\n", own.number == (uint32_t)getpid());
    own.number += 7;
    tell_result("bind elsewhere", bind(fd, (void *)&own, sizeof own));
    tell_result("nothing there", recv(fd, answered, sizeof answered, MSG_DONTWAIT));
    uint32_t question[5] = {20, 18 | 0x301 << 16, 77, 0, 0};
    tell_result("to nobody", sendto(fd, question, 20, 0, (void *)&own, sizeof own));
    tell_result("sendto", sendto(fd, question, 20, 0, (void *)&kernel, sizeof kernel));
    struct pollfd one = {.fd = fd, .events = POLLIN};
    tell_result("poll", poll(&one, 1, 1000));
    memset(&own, 1, sizeof own);
    bytes = sizeof own;
    ssize_t got = recvfrom(fd, answered, sizeof answered, 0, (void *)&own, &bytes);
    uint32_t *head = (uint32_t *)answered;
    tell("something: %d, of kind %d, asked as %u by %d\n", got >= 16, head[1] & 0xffff, head[2], head[3] == (uint32_t)getpid());
    tell("from %u bytes, family %d, number %u\n", bytes, own.family, own.number);
    close(fd);
}

static void handle(const struct request *request) {
    told[0] = 0;
    if (is_path(request, "/interfaces"))
        interfaces();
    else if (is_path(request, "/configured"))
        configured();
    else if (is_path(request, "/requests"))
        requests();
    else if (is_path(request, "/listeners"))
        listeners();
    else
        calls();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
