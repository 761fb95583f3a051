/* The load generator of the benchmark: a closed loop of keep-alive HTTP/1.1 connections.
 *
 *   load --port N --body JSON [--path P] [--header 'Name: value']... [--connections N] [--warmup S] [--seconds S]
 *        [--mark TEXT --marks N] [--require TEXT]... [--batch]
 *
 * Each connection sends the request, reads the whole answer, checks it, sends again.  What completes within `seconds`
 * after `warmup` counts; then no request is sent any more, and the answers still under way are waited for, so that the
 * server is idle when this program ends.  An answer is good if its status is 200, its framing is whole, `mark` occurs
 * exactly `marks` times in its body and each `require` occurs at all.  Anything else is an error, in the warm-up and
 * at the end as well; no connection is retried in silence.
 *
 * With --batch it runs under SCHED_BATCH: it then does not interrupt an upstream on the same core for every event that
 * arrives, so that at saturation the core of the gateway is the full one.  Not for latencies at low load.
 *
 * Prints one JSON object.  Latency runs from just before send() to the last byte of the answer; time to first byte to
 * the first byte of the body, behind head and transfer coding.  "answers" counts all good ones from start to end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CONNECTIONS = 1024,
    MAX_REQUIRED = 4,
    LINE_BYTES = 8192,
    BODY_BYTES = 1 << 20,
    READ_BYTES = 1 << 16,
    MAX_ERRORS = 1000, /* give up on a target that only fails */
};
#define EVENT_MARK "data:" /* begins every server-sent event of a chat completion */
#define DRAIN_NS (20 * 1000000000ull)

enum state { STATUS_LINE, HEADER, SIZED_BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, DONE };

struct connection {
    int fd;
    bool busy; /* a request is out, its answer not complete */
    enum state state;
    char line[LINE_BYTES]; /* status line, header or chunk size being read */
    size_t line_size;
    int status;
    bool chunked, close_after;
    size_t remaining; /* bytes of the body, or of the chunk, to come */
    char *body;
    size_t body_size, scanned; /* events in body[0..scanned) are counted */
    uint64_t sent_ns, first_ns;
};

struct samples {
    uint64_t *ns;
    size_t count, room;
};

static struct {
    int port, connections, marks, required_count;
    double warmup, seconds;
    bool batch;
    const char *path, *body, *mark, *required[MAX_REQUIRED];
} options = {.connections = 1, .seconds = 1, .path = "/v1/chat/completions"};

static char *request;
static size_t request_size;
static int epoll_fd;
static struct connection connections[MAX_CONNECTIONS];
static uint64_t window_start, window_end;
static uint64_t answers, in_window, events, errors;
static char first_error[256];
static struct samples latency, first_byte;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void add_sample(struct samples *samples, uint64_t ns) {
    if (samples->count == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 4096;
        samples->ns = realloc(samples->ns, samples->room * sizeof *samples->ns);
        if (samples->ns == NULL)
            fail("realloc");
    }
    samples->ns[samples->count++] = ns;
}

static bool within_window(uint64_t now) {
    return now >= window_start && now < window_end;
}

static void open_connection(struct connection *connection) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect");
    fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) < 0)
        fail("epoll_ctl");
}

static void reopen(struct connection *connection) {
    close(connection->fd);
    open_connection(connection);
}

static void send_request(struct connection *connection) {
    connection->busy = true;
    connection->state = STATUS_LINE;
    connection->line_size = connection->body_size = connection->scanned = connection->remaining = 0;
    connection->chunked = connection->close_after = false;
    connection->first_ns = 0;
    connection->sent_ns = now_ns();
    /* The socket is empty and the request small: a short write would be a broken machine. */
    if (send(connection->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size)
        fail("send");
}

static void count_error(const char *what, const struct connection *connection) {
    if (errors++ == 0)
        snprintf(first_error, sizeof first_error, "%s, status %d: %.*s", what, connection->status,
                 (int)(connection->body_size < 150 ? connection->body_size : 150), connection->body);
}

static const char *fault(const struct connection *connection) {
    if (connection->status != 200)
        return "refused";
    int marks = 0;
    if (options.mark != NULL) {
        const char *at = connection->body, *end = at + connection->body_size;
        size_t size = strlen(options.mark);
        while ((at = memmem(at, (size_t)(end - at), options.mark, size)) != NULL) {
            marks++;
            at += size;
        }
    }
    if (marks != options.marks)
        return "content is not whole";
    for (int i = 0; i < options.required_count; i++)
        if (memmem(connection->body, connection->body_size, options.required[i], strlen(options.required[i])) == NULL)
            return options.required[i];
    return NULL;
}

/* The answer on this connection has ended, well or not: book it and go on. */
static void finish(struct connection *connection, const char *what) {
    uint64_t now = now_ns();
    connection->busy = false;
    if (what == NULL)
        what = fault(connection);
    if (what != NULL) {
        count_error(what, connection);
    } else {
        answers++;
        if (within_window(now)) {
            in_window++;
            add_sample(&latency, now - connection->sent_ns);
            add_sample(&first_byte, connection->first_ns - connection->sent_ns);
        }
    }
    if (connection->state != DONE || connection->close_after)
        reopen(connection);
    if (now < window_end && errors < MAX_ERRORS)
        send_request(connection);
}

/* Take body bytes and count the events that they complete; an event's mark may lie across two reads. */
static void take_body(struct connection *connection, const char *data, size_t size) {
    uint64_t now = now_ns();
    if (connection->first_ns == 0)
        connection->first_ns = now;
    if (connection->body_size + size > BODY_BYTES) {
        fprintf(stderr, "load: an answer is larger than %d bytes\n", BODY_BYTES);
        exit(1);
    }
    memcpy(connection->body + connection->body_size, data, size);
    connection->body_size += size;
    const size_t mark = sizeof EVENT_MARK - 1;
    const char *at;
    while ((at = memmem(connection->body + connection->scanned, connection->body_size - connection->scanned, EVENT_MARK,
                        mark)) != NULL) {
        connection->scanned = (size_t)(at - connection->body) + mark;
        events += within_window(now);
    }
    if (connection->body_size - connection->scanned >= mark)
        connection->scanned = connection->body_size - mark + 1;
}

static void take_header(struct connection *connection) {
    const char *line = connection->line;
    if (strncasecmp(line, "content-length:", 15) == 0)
        connection->remaining = strtoul(line + 15, NULL, 10);
    else if (strncasecmp(line, "transfer-encoding:", 18) == 0)
        connection->chunked = strcasestr(line, "chunked") != NULL;
    else if (strncasecmp(line, "connection:", 11) == 0)
        connection->close_after = strcasestr(line, "close") != NULL;
    else if (connection->line_size == 0)
        connection->state = connection->chunked ? CHUNK_SIZE : connection->remaining > 0 ? SIZED_BODY : DONE;
}

/* A whole line without its end: advance the state that reads lines. */
static void take_line(struct connection *connection) {
    switch (connection->state) {
    case STATUS_LINE:
        connection->status = connection->line_size > 9 ? atoi(connection->line + 9) : 0;
        connection->state = HEADER;
        break;
    case HEADER:
        take_header(connection);
        break;
    case CHUNK_SIZE:
        connection->remaining = strtoul(connection->line, NULL, 16);
        connection->state = connection->remaining > 0 ? CHUNK_DATA : TRAILER;
        break;
    case CHUNK_END:
        connection->state = CHUNK_SIZE;
        break;
    case TRAILER:
        if (connection->line_size == 0)
            connection->state = DONE;
        break;
    default:
        break;
    }
}

static void take(struct connection *connection, const char *data, size_t size) {
    const char *end = data + size;
    while (data < end && connection->state != DONE) {
        size_t left = (size_t)(end - data);
        if (connection->state == SIZED_BODY || connection->state == CHUNK_DATA) {
            size_t part = left < connection->remaining ? left : connection->remaining;
            take_body(connection, data, part);
            data += part;
            connection->remaining -= part;
            if (connection->remaining == 0)
                connection->state = connection->state == SIZED_BODY ? DONE : CHUNK_END;
            continue;
        }
        const char *newline = memchr(data, '\n', left);
        size_t part = newline != NULL ? (size_t)(newline - data) : left;
        if (connection->line_size + part >= LINE_BYTES) {
            fprintf(stderr, "load: a header is larger than %d bytes\n", LINE_BYTES);
            exit(1);
        }
        memcpy(connection->line + connection->line_size, data, part);
        connection->line_size += part;
        data += part;
        if (newline != NULL) {
            data++;
            if (connection->line_size > 0 && connection->line[connection->line_size - 1] == '\r')
                connection->line_size--;
            connection->line[connection->line_size] = '\0';
            take_line(connection);
            connection->line_size = 0;
        }
    }
}

static void readable(struct connection *connection) {
    static char buffer[READ_BYTES];
    ssize_t got = recv(connection->fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0 && connection->busy) {
        finish(connection, "connection closed before the answer's end");
    } else if (got <= 0) {
        reopen(connection);
    } else {
        take(connection, buffer, (size_t)got);
        if (connection->busy && connection->state == DONE)
            finish(connection, NULL);
    }
}

static int by_value(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static double percentile_us(const struct samples *sorted, double share) {
    if (sorted->count == 0)
        return 0;
    return (double)sorted->ns[(size_t)(share * (double)(sorted->count - 1) + 0.5)] / 1000.0;
}

static void print_samples(const char *name, struct samples *samples) {
    if (samples->count > 0)
        qsort(samples->ns, samples->count, sizeof *samples->ns, by_value);
    printf(", \"%s\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name, percentile_us(samples, 0.5),
           percentile_us(samples, 0.99), percentile_us(samples, 1));
}

static void print_string(const char *text) {
    putchar('"');
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        putchar(*text >= ' ' && *text <= '~' ? *text : ' ');
    }
    putchar('"');
}

static void parse_options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, NULL, 'p'},    {"body", 1, NULL, 'b'},    {"path", 1, NULL, 'a'},  {"header", 1, NULL, 'h'},
        {"connections", 1, NULL, 'c'}, {"warmup", 1, NULL, 'w'}, {"seconds", 1, NULL, 's'}, {"mark", 1, NULL, 'm'},
        {"marks", 1, NULL, 'n'},   {"require", 1, NULL, 'r'}, {"batch", 0, NULL, 'B'}, {NULL, 0, NULL, 0},
    };
    char *headers = "";
    for (int option; (option = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (option) {
        case 'p': options.port = atoi(optarg); break;
        case 'b': options.body = optarg; break;
        case 'a': options.path = optarg; break;
        case 'h':
            if (asprintf(&headers, "%s%s\r\n", headers, optarg) < 0)
                fail("asprintf");
            break;
        case 'c': options.connections = atoi(optarg); break;
        case 'w': options.warmup = atof(optarg); break;
        case 's': options.seconds = atof(optarg); break;
        case 'm': options.mark = optarg; break;
        case 'n': options.marks = atoi(optarg); break;
        case 'r':
            if (options.required_count < MAX_REQUIRED)
                options.required[options.required_count++] = optarg;
            break;
        case 'B': options.batch = true; break;
        default: exit(2);
        }
    }
    if (options.port == 0 || options.body == NULL || options.connections < 1 || options.connections > MAX_CONNECTIONS) {
        fprintf(stderr, "load: --port and --body are needed, and 1 to %d connections\n", MAX_CONNECTIONS);
        exit(2);
    }
    int size = asprintf(&request,
                        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n%s"
                        "Content-Length: %zu\r\n\r\n%s",
                        options.path, options.port, headers, strlen(options.body), options.body);
    if (size < 0)
        fail("asprintf");
    request_size = (size_t)size;
}

static bool any_busy(void) {
    for (int i = 0; i < options.connections; i++)
        if (connections[i].busy)
            return true;
    return false;
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    if (options.batch && sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0}) < 0)
        fail("sched_setscheduler");
    epoll_fd = epoll_create1(0);
    window_start = now_ns() + (uint64_t)(options.warmup * 1e9);
    window_end = window_start + (uint64_t)(options.seconds * 1e9);
    for (int i = 0; i < options.connections; i++) {
        connections[i].body = malloc(BODY_BYTES);
        if (connections[i].body == NULL)
            fail("malloc");
        open_connection(&connections[i]);
        send_request(&connections[i]);
    }
    while (any_busy() && now_ns() < window_end + DRAIN_NS) {
        struct epoll_event ready[MAX_CONNECTIONS];
        int count = epoll_wait(epoll_fd, ready, MAX_CONNECTIONS, 100);
        for (int i = 0; i < count; i++)
            readable(ready[i].data.ptr);
    }
    for (int i = 0; i < options.connections; i++)
        if (connections[i].busy)
            count_error("no answer in time", &connections[i]);

    printf("{\"answers\": %lu, \"errors\": %lu, \"requests_per_s\": %.1f, \"events_per_s\": %.1f", answers, errors,
           (double)in_window / options.seconds, (double)events / options.seconds);
    print_samples("latency_us", &latency);
    print_samples("first_byte_us", &first_byte);
    printf(", \"first_error\": ");
    print_string(first_error);
    printf("}\n");
    return 0;
}
