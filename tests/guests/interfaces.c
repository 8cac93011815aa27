/* What programs ask about network interfaces, by ioctl and by netlink. A host may have more of them: what is told
   is of the loopback interface, and whether all tell the same of the others. */
#define _GNU_SOURCE
#include "guest.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* As in linux/netlink.h and linux/rtnetlink.h, which musl does not bring. */
enum { NETLINK_ROUTE, NLM_F_REQUEST = 1, NLM_F_MULTI, NLM_F_ACK = 4, NLMSG_ERROR = 2, RTM_NEWLINK = 16, RTM_GETLINK = 18 };
struct sockaddr_nl {
    uint16_t nl_family, nl_pad;
    uint32_t nl_pid, nl_groups;
};
struct nlmsghdr {
    uint32_t nlmsg_len;
    uint16_t nlmsg_type, nlmsg_flags;
    uint32_t nlmsg_seq, nlmsg_pid;
};
struct ifinfomsg {
    uint8_t ifi_family, ifi_pad;
    uint16_t ifi_type;
    int32_t ifi_index;
    uint32_t ifi_flags, ifi_change;
};

static void names(void) {
    char name[IF_NAMESIZE] = "";
    tell_result("index of lo", if_nametoindex("lo"));
    tell("name of 1: %s\n", if_indextoname(1, name) ? name : strerrorname(errno));
    tell("index of what is not there: %u %s\n", if_nametoindex("none"), strerrorname(errno));
    tell("name of what is not there: %s\n", if_indextoname(77777, name) ? name : "none");
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *one = all; one && one->if_index; one++)
        if (strcmp(one->if_name, "lo") == 0)
            tell("listed: %u\n", one->if_index);
    if_freenameindex(all);
}

static void tell_address(const char *what, const struct sockaddr *address) {
    char text[INET6_ADDRSTRLEN] = "none";
    if (address && address->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text);
    if (address && address->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text);
    tell(" %s %s", what, text);
}

static void addresses(int family) {
    struct ifaddrs *all;
    if (getifaddrs(&all) != 0) {
        tell("getifaddrs: %s\n", strerrorname(errno));
        return;
    }
    for (struct ifaddrs *one = all; one; one = one->ifa_next) {
        if (strcmp(one->ifa_name, "lo") != 0 || !one->ifa_addr || one->ifa_addr->sa_family != family)
            continue;
        tell("family %d, flags %x:", family, one->ifa_flags & (IFF_UP | IFF_LOOPBACK | IFF_RUNNING));
        tell_address("address", one->ifa_addr);
        tell_address("mask", one->ifa_netmask);
        tell("\n");
    }
    freeifaddrs(all);
}

static void controls(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    static const struct {
        const char *name;
        unsigned long request;
    } requests[] = {
        {"address", SIOCGIFADDR},    {"mask", SIOCGIFNETMASK}, {"to", SIOCGIFDSTADDR},
        {"everybody", SIOCGIFBRDADDR},
    };
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        struct ifreq request = {.ifr_name = "lo"};
        tell_result(requests[i].name, ioctl(fd, requests[i].request, &request));
        tell_address(requests[i].name, &request.ifr_addr);
        tell("\n");
    }
    struct ifreq request = {.ifr_name = "lo"};
    tell_result("flags", ioctl(fd, SIOCGIFFLAGS, &request));
    tell("%x\n", request.ifr_flags & (IFF_UP | IFF_LOOPBACK | IFF_RUNNING));
    tell_result("longest packet", ioctl(fd, SIOCGIFMTU, &request));
    tell("%d\n", request.ifr_mtu);
    tell_result("hardware", ioctl(fd, SIOCGIFHWADDR, &request));
    tell("%d %d\n", request.ifr_hwaddr.sa_family, request.ifr_hwaddr.sa_data[5]);
    strcpy(request.ifr_name, "none");
    tell_result("flags of none", ioctl(fd, SIOCGIFFLAGS, &request));

    char room[4096];
    struct ifconf all = {.ifc_len = sizeof room, .ifc_buf = room};
    tell_result("all", ioctl(fd, SIOCGIFCONF, &all));
    for (int i = 0; i < all.ifc_len / (int)sizeof(struct ifreq); i++)
        if (strcmp(all.ifc_req[i].ifr_name, "lo") == 0)
            tell_address("lo", &all.ifc_req[i].ifr_addr);
    tell("\n");
    all = (struct ifconf){.ifc_len = 0};
    tell_result("room for all", ioctl(fd, SIOCGIFCONF, &all));
    tell("some: %d\n", all.ifc_len >= (int)sizeof(struct ifreq));
    all = (struct ifconf){.ifc_len = sizeof(struct ifreq) - 1, .ifc_buf = room};
    tell_result("no room", ioctl(fd, SIOCGIFCONF, &all));
    tell("%d\n", all.ifc_len);
    close(fd);
}

/* Asks for one interface and tells the answer. */
static void ask(int fd, int kind, int flags, int index) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } request = {
        .head = {.nlmsg_len = sizeof request, .nlmsg_type = (unsigned short)kind,
                 .nlmsg_flags = (unsigned short)(NLM_F_REQUEST | flags), .nlmsg_seq = 77},
        .body = {.ifi_index = index},
    };
    tell_result("asked", send(fd, &request, sizeof request, 0));
    static char answer[16384] __attribute__((aligned(8)));
    struct sockaddr_nl from;
    socklen_t bytes = sizeof from;
    tell("looked at it before: %d\n", recv(fd, answer, 0, MSG_PEEK | MSG_TRUNC) > 0);
    int left = (int)recvfrom(fd, answer, sizeof answer, 0, (struct sockaddr *)&from, &bytes);
    tell("from family %d, %d bytes, port %u\n", from.nl_family, (int)bytes, from.nl_pid);
    for (int at = 0; at + (int)sizeof(struct nlmsghdr) <= left;) {
        struct nlmsghdr *one = (void *)(answer + at);
        tell("kind %d, flags %x, number %u\n", one->nlmsg_type, one->nlmsg_flags & (NLM_F_MULTI | NLM_F_ACK),
             one->nlmsg_seq);
        if (one->nlmsg_type == NLMSG_ERROR)
            tell("error %d\n", *(int *)(one + 1));
        if (one->nlmsg_type == RTM_NEWLINK) {
            struct ifinfomsg *link = (void *)(one + 1);
            tell("index %d, hardware %d, flags %x\n", link->ifi_index, link->ifi_type,
                 link->ifi_flags & (IFF_UP | IFF_LOOPBACK | IFF_RUNNING));
        }
        at += (int)(one->nlmsg_len + 3) & ~3;
    }
}

static void messages(void) {
    struct sockaddr_nl own = {.nl_family = AF_NETLINK};
    socklen_t bytes = sizeof own;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    tell_result("bind", bind(fd, (struct sockaddr *)&own, sizeof own));
    tell_result("its name", getsockname(fd, (struct sockaddr *)&own, &bytes));
    tell("family %d, %d bytes, the process's number: %d\n", own.nl_family, (int)bytes,
         own.nl_pid == (unsigned)getpid());
    tell_result("nothing is there", recv(fd, &own, sizeof own, MSG_DONTWAIT));
    ask(fd, RTM_GETLINK, 0, 1);
    ask(fd, RTM_GETLINK, NLM_F_ACK, 77777);
    struct sockaddr_nl other = {.nl_family = AF_NETLINK};
    bytes = sizeof other;
    int second = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE);
    tell_result("bind a second", bind(second, (struct sockaddr *)&other, sizeof other));
    tell_result("its name", getsockname(second, (struct sockaddr *)&other, &bytes));
    tell("another number: %d\n", other.nl_pid != own.nl_pid && other.nl_pid != 0);
    struct timeval soon = {.tv_usec = 1000};
    tell_result("time", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon));
    tell_result("receive in vain", recv(fd, &own, sizeof own, 0));
    tell_result("listen", listen(fd, 1));
    tell_result("a stream", socket(AF_NETLINK, SOCK_STREAM, NETLINK_ROUTE));
    close(second);
    close(fd);
}

/* Whatever there is, all who are asked tell the same of it. */
static void agreement(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0), links = 0, different = 0;
    static char counts[16384], line[IF_NAMESIZE + 2];
    FILE *file = fopen("/proc/net/dev", "r");
    counts[fread(counts, 1, sizeof counts - 1, file)] = '\0';
    fclose(file);
    struct if_nameindex *all = if_nameindex();
    struct ifaddrs *addresses;
    getifaddrs(&addresses);
    for (struct if_nameindex *one = all; one && one->if_index; one++) {
        struct ifreq request = {.ifr_ifindex = (int)one->if_index};
        char name[IF_NAMESIZE] = "";
        links++;
        different += ioctl(fd, SIOCGIFNAME, &request) != 0 || strcmp(request.ifr_name, one->if_name) != 0;
        different += if_nametoindex(one->if_name) != one->if_index;
        different += if_indextoname(one->if_index, name) == NULL || strcmp(name, one->if_name) != 0;
        snprintf(line, sizeof line, "%s:", one->if_name);
        different += strstr(counts, line) == NULL;
        for (struct ifaddrs *at = addresses; at; at = at->ifa_next) {
            if (strcmp(at->ifa_name, one->if_name) != 0 || !at->ifa_addr || at->ifa_addr->sa_family != AF_INET)
                continue;
            different += ioctl(fd, SIOCGIFFLAGS, &request) != 0 ||
                         (unsigned short)request.ifr_flags != (unsigned short)at->ifa_flags;
            different += ioctl(fd, SIOCGIFADDR, &request) != 0 ||
                         memcmp(&request.ifr_addr, at->ifa_addr, sizeof(struct sockaddr_in)) != 0;
            different += ioctl(fd, SIOCGIFNETMASK, &request) != 0 ||
                         memcmp(&request.ifr_addr, at->ifa_netmask, sizeof(struct sockaddr_in)) != 0;
        }
    }
    tell("some: %d, different: %d\n", links > 0, different);
    if_freenameindex(all);
    freeifaddrs(addresses);

    char name[IF_NAMESIZE] = "unchanged";
    socklen_t bytes = sizeof name;
    tell_result("bound to none", getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &bytes));
    tell("%d bytes\n", (int)bytes);
    tell_result("to what is not there", setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "none", 5));
    tell_result("to lo", setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2));
    bytes = sizeof name;
    tell_result("bound", getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &bytes));
    tell("%s, %d bytes\n", name, (int)bytes);
    tell_result("little room", getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &(socklen_t){4}));
    tell_result("to any", setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "", 0));
    close(fd);
}

/* A message that is longer than any the guest understands is refused whole. */
static void too_long(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct nlmsghdr head = {.nlmsg_len = sizeof head, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST};
    static char rest[1024];
    struct iovec parts[] = {{&head, sizeof head}, {rest, sizeof rest}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    tell_result("sent", sendmsg(fd, &message, 0));
    tell_result("answered", recv(fd, rest, sizeof rest, MSG_DONTWAIT));
    close(fd);
}

static void handle(const struct request *request) {
    told[0] = '\0';
    if (is_path(request, "/names"))
        names();
    if (is_path(request, "/v4"))
        addresses(AF_INET);
    if (is_path(request, "/v6"))
        addresses(AF_INET6);
    if (is_path(request, "/controls"))
        controls();
    if (is_path(request, "/messages"))
        messages();
    if (is_path(request, "/agreement"))
        agreement();
    if (is_path(request, "/too_long"))
        too_long();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
