/* Load on an HTTP/1.1 server: N connections, each with one request under way.
 *
 * Usage: load (--tcp PORT | --unix PATH) --request FILE --connections N --seconds S
 *             [--expect FILE]
 *
 * 1. Connects, makes one request on each connection (the warm-up) and prints "ready".
 * 2. Waits for a line on standard input, so that whoever measures the server can read
 *    its clock first; then sends the request in FILE again and again on every
 *    connection. After S seconds nothing new is sent; what is under way is awaited.
 * 3. Prints one line of JSON: requests, errors (also those of the warm-up) by kind,
 *    duration, latencies in us from before the first send to the last byte, and the CPU
 *    time of this process. Latencies of the first 200 ms are left out: all connections
 *    begin at once, which no later round of them does.
 *
 * An answer is right when its status is 200 and, with --expect, its body is FILE, byte
 * for byte. Only bodies with Content-Length are read; others end the run, as does a
 * server that answers nothing for 30 s.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    RAMP_NS = 200000000, HEAD_BYTES = 16384, SILENCE_MS = 30000, SHOWN = 300,
    CONNECTIONS_MAX = 4096
};

struct bytes { char *data; size_t size; };

struct connection {
    int fd, wants_write, bad, closing;
    size_t sent, head_size, body_seen, body_size;
    int in_body;
    uint64_t begun_ns;
    char head[HEAD_BYTES];
};

static struct {
    int port, connections, epoll, running, pending;
    const char *path;
    double seconds;
    struct bytes request, expected;
    uint64_t ramp_ns, end_ns, last_ns;
    double *latencies_us;
    size_t requests, timed, room;
    size_t wrong_status, wrong_body, closed, reconnects;
    char shown[SHOWN + 1];
} run;

static void fail(const char *what) {
    fprintf(stderr, "load: %s%s%s\n", what, errno ? ": " : "",
            errno ? strerror(errno) : "");
    exit(2);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct bytes content(const char *path) {
    struct stat info;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &info)) fail(path);
    struct bytes read_in = {malloc((size_t)info.st_size + 1), (size_t)info.st_size};
    size_t have = 0;
    while (have < read_in.size) {
        ssize_t got = read(fd, read_in.data + have, read_in.size - have);
        if (got <= 0) fail(path);
        have += (size_t)got;
    }
    close(fd);
    return read_in;
}

static void connect_to(struct connection *one) {
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in inet = {.sin_family = AF_INET};
    const struct sockaddr *address = (struct sockaddr *)&inet;
    socklen_t size = sizeof inet;
    if (run.path) {
        if (strlen(run.path) >= sizeof local.sun_path) fail("socket path too long");
        strcpy(local.sun_path, run.path);
        address = (struct sockaddr *)&local;
        size = sizeof local;
    } else {
        inet.sin_port = htons((uint16_t)run.port);
        inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    one->fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (one->fd < 0 || connect(one->fd, address, size)) fail("cannot connect");
    int yes = 1;
    if (!run.path) setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(one->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
    if (epoll_ctl(run.epoll, EPOLL_CTL_ADD, one->fd, &event)) fail("epoll");
    one->wants_write = 0;
}

static void show(const struct connection *one) {
    if (run.shown[0]) return;
    size_t size = one->head_size < SHOWN ? one->head_size : SHOWN;
    for (size_t at = 0; at < size; at++) {
        unsigned char letter = (unsigned char)one->head[at];
        run.shown[at] = (char)(letter < ' ' || letter > '~' || strchr("\"\\", letter)
                                   ? ' ' : letter);
    }
}

/* Sends what is left of the request; the rest waits until the socket can be written. */
static int push(struct connection *one) {
    while (one->sent < run.request.size) {
        ssize_t done = send(one->fd, run.request.data + one->sent,
                            run.request.size - one->sent, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && errno != EAGAIN) return -1;
        if (done > 0) { one->sent += (size_t)done; continue; }
        break;
    }
    int wants = one->sent < run.request.size;
    if (wants != one->wants_write) {
        struct epoll_event event = {.events = EPOLLIN | (wants ? EPOLLOUT : 0),
                                    .data.ptr = one};
        if (epoll_ctl(run.epoll, EPOLL_CTL_MOD, one->fd, &event)) fail("epoll");
        one->wants_write = wants;
    }
    return 0;
}

static void lost(struct connection *one);

static void ask(struct connection *one) {
    one->sent = one->head_size = one->body_seen = 0;
    one->in_body = one->bad = one->closing = 0;
    one->begun_ns = now_ns();
    run.pending++;
    if (push(one)) lost(one);
}

/* The server hung up: with a request under way that is an error, and a new connection
 * takes over, so that the load stays what it was. */
static void reconnect(struct connection *one) {
    close(one->fd);
    run.reconnects++;
    connect_to(one);
}

static void lost(struct connection *one) {
    run.closed++;
    run.pending--;
    if (run.closed + run.requests > 1000 && run.closed > run.requests)
        fail("the server hangs up on most requests");
    reconnect(one);
    if (run.running && now_ns() < run.end_ns) ask(one);
}

static void answered(struct connection *one) {
    uint64_t now = now_ns();
    run.pending--;
    if (one->bad & 1) run.wrong_status++;
    else if (one->bad & 2) run.wrong_body++;
    if (one->bad) show(one);
    if (run.running) {
        run.requests++;
        run.last_ns = now;
        if (run.timed == run.room) {
            run.room = run.room ? 2 * run.room : 1 << 16;
            run.latencies_us = realloc(run.latencies_us, run.room * sizeof(double));
            if (!run.latencies_us) fail("out of memory");
        }
        if (now >= run.ramp_ns)
            run.latencies_us[run.timed++] = (double)(now - one->begun_ns) / 1e3;
    }
    /* An answer before the whole request was sent: the rest would be read as another. */
    if (one->closing || one->sent < run.request.size) reconnect(one);
    if (run.running && now < run.end_ns) ask(one);
}

/* Reads status, length and whether the server will hang up out of the head. */
static void understand(struct connection *one, char *end) {
    *end = 0;
    one->body_size = SIZE_MAX;
    if (one->head_size < 12 || strncmp(one->head, "HTTP/1.", 7))
        fail("this is not HTTP/1");
    if (strncmp(one->head + 9, "200", 3)) one->bad |= 1;
    for (char *line = strstr(one->head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15))
            one->body_size = strtoul(line + 15, NULL, 10);
        else if (!strncasecmp(line, "connection:", 11))
            one->closing
                = !strncasecmp(line + 11 + strspn(line + 11, " "), "close", 5);
    }
    *end = '\r';
    if (one->body_size == SIZE_MAX) fail("an answer without Content-Length");
    if (run.expected.data && one->body_size != run.expected.size) one->bad |= 2;
    one->in_body = 1;
}

static void body(struct connection *one, const char *data, size_t size) {
    if (one->body_seen + size > one->body_size) fail("more bytes than were asked for");
    if (run.expected.data && !one->bad
        && memcmp(run.expected.data + one->body_seen, data, size))
        one->bad |= 2;
    one->body_seen += size;
    if (one->body_seen == one->body_size) answered(one);
}

static void head(struct connection *one) {
    char *end = memmem(one->head, one->head_size, "\r\n\r\n", 4);
    if (!end) {
        if (one->head_size == HEAD_BYTES) fail("headers of more than 16 KiB");
        return;
    }
    understand(one, end);
    char *rest = end + 4;
    body(one, rest, one->head_size - (size_t)(rest - one->head));
}

static void pull(struct connection *one) {
    static char spare[1 << 16];
    char *into = one->in_body ? spare : one->head + one->head_size;
    size_t room = one->in_body ? sizeof spare : HEAD_BYTES - one->head_size;
    ssize_t got = recv(one->fd, into, room, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    int waiting = one->begun_ns && (!one->in_body || one->body_seen < one->body_size);
    if (got <= 0) {
        if (waiting) lost(one); else reconnect(one);
    } else if (!waiting) {
        fail("bytes that nobody asked for");
    } else if (one->in_body) {
        body(one, spare, (size_t)got);
    } else {
        one->head_size += (size_t)got;
        head(one);
    }
}

static void settle(void) {
    struct epoll_event events[64];
    while (run.pending) {
        int count = epoll_wait(run.epoll, events, 64, SILENCE_MS);
        if (count < 0 && errno == EINTR) continue;
        errno = 0;
        if (count <= 0) fail("no answer for 30 s");
        for (int at = 0; at < count; at++) {
            struct connection *one = events[at].data.ptr;
            if (events[at].events & EPOLLOUT && push(one)) { lost(one); continue; }
            if (events[at].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) pull(one);
        }
    }
}

static int ascending(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double quantile(double share) {
    if (!run.timed) return 0;
    size_t at = (size_t)(share * (double)run.timed);
    return run.latencies_us[at < run.timed ? at : run.timed - 1];
}

static double cpu_us(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6
         + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void options(int count, char **words) {
    run.connections = 1;
    run.seconds = 1;
    for (int at = 1; at + 1 < count; at += 2) {
        const char *name = words[at], *value = words[at + 1];
        if (!strcmp(name, "--tcp")) run.port = atoi(value);
        else if (!strcmp(name, "--unix")) run.path = value;
        else if (!strcmp(name, "--request")) run.request = content(value);
        else if (!strcmp(name, "--expect")) run.expected = content(value);
        else if (!strcmp(name, "--connections")) run.connections = atoi(value);
        else if (!strcmp(name, "--seconds")) run.seconds = atof(value);
        else fail(name);
    }
    if (count % 2 == 0 || !run.request.data || (!run.port && !run.path)
        || run.connections < 1 || run.connections > CONNECTIONS_MAX)
        fail("usage: load (--tcp PORT | --unix PATH) --request FILE "
             "--connections N --seconds S [--expect FILE]");
}

int main(int count, char **words) {
    options(count, words);
    run.epoll = epoll_create1(EPOLL_CLOEXEC);
    struct connection *all = calloc((size_t)run.connections, sizeof *all);
    if (!all || run.epoll < 0) fail("no memory");
    for (int at = 0; at < run.connections; at++) {
        connect_to(&all[at]);
        ask(&all[at]);
        settle();
    }
    size_t early = run.wrong_status + run.wrong_body + run.closed;
    puts("ready");
    fflush(stdout);
    char line[8];
    if (!fgets(line, sizeof line, stdin)) return 2;

    double cpu = cpu_us();
    uint64_t begun = now_ns();
    run.last_ns = begun;
    run.ramp_ns = begun + RAMP_NS;
    run.end_ns = begun + (uint64_t)(run.seconds * 1e9);
    run.running = 1;
    for (int at = 0; at < run.connections; at++) ask(&all[at]);
    settle();
    cpu = cpu_us() - cpu;

    qsort(run.latencies_us, run.timed, sizeof(double), ascending);
    printf("{\"requests\": %zu, \"errors\": %zu, \"warm_up_errors\": %zu, "
           "\"wrong_status\": %zu, \"wrong_body\": %zu, \"closed\": %zu, "
           "\"reconnects\": %zu, \"duration_s\": %.6f, \"p50_us\": %.1f, "
           "\"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, "
           "\"client_cpu_us\": %.2f, \"first_wrong\": \"%s\"}\n",
           run.requests, run.wrong_status + run.wrong_body + run.closed, early,
           run.wrong_status, run.wrong_body, run.closed, run.reconnects,
           (double)(run.last_ns - begun) / 1e9, quantile(0.50), quantile(0.90),
           quantile(0.99), quantile(1.0), run.requests ? cpu / (double)run.requests : 0,
           run.shown);
    return 0;
}
