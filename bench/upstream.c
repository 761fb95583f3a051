/* The upstream of the benchmark: an OpenAI-shaped chat completions server that does no work of its own.
 *
 *   upstream PORT
 *
 * One thread, epoll, HTTP/1.1 with keep-alive on 127.0.0.1.  Every POST is taken for a chat completion:
 *
 *   "stream" absent or false   one JSON answer of about 1 KB with Content-Length
 *   "stream": true             EVENTS server-sent events in chunked coding, each written by its own send(), as
 *                              inference servers do; one more, the usage chunk, for "include_usage": true
 *   a model called "paced"     the same events, the first at once, then one every PACE_MS on a clock that all
 *                              streams share, as the decode steps of a batching engine; otherwise all in a burst
 *
 * The options are read out of the body by looking for their names, so they pass through any gateway.  The answer's
 * text is MARKS times the same words; the load generator counts them.  Requests must carry Content-Length and fit
 * into REQUEST_BYTES.  No pipelining: clients of the kind measured here never send a request before the answer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    MARKS = 61,          /* content chunks of a stream */
    EVENTS = MARKS + 3,  /* role chunk, content chunks, finish chunk, [DONE] */
    PACE_MS = 5,
    REQUEST_BYTES = 65536,
    MAX_FDS = 4096,
    MAX_READY = 256,
};

#define WORDS " lorem ipsum"
#define IDENTITY(object) "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"" object \
                         "\",\"created\":1760000000,\"model\":\"fast\","
#define CHUNK(delta, finish) IDENTITY("chat.completion.chunk") "\"choices\":[{\"index\":0,\"delta\":" delta \
                             ",\"logprobs\":null,\"finish_reason\":" finish "}]}"
#define USAGE "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":61,\"total_tokens\":73}"

struct piece {
    char *data;
    size_t size;
};

struct connection {
    int fd;
    char request[REQUEST_BYTES + 1];
    size_t received;
    const struct piece *next, *end; /* pieces still to be sent; next == end while waiting for a request */
    size_t sent;                    /* bytes of *next already sent */
    size_t allowed;                 /* pieces that may be sent now: one per tick when paced */
    bool paced;
};

static struct piece answer;                 /* head and body of the plain answer */
static struct piece stream[EVENTS];         /* the head goes out together with the role chunk */
static struct piece stream_usage[EVENTS + 1];
static struct piece refusal;
static struct connection *connections[MAX_FDS];
static int epoll_fd;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static struct piece format(const char *pattern, const char *text) {
    struct piece piece;
    int size = asprintf(&piece.data, pattern, strlen(text), text);
    if (size < 0)
        fail("asprintf");
    piece.size = (size_t)size;
    return piece;
}

/* Build every byte that will ever be sent. */
static void prepare(void) {
    char body[4096] = IDENTITY("chat.completion") "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                                                  "\"content\":\"";
    for (int i = 0; i < MARKS; i++)
        strcat(body, WORDS);
    strcat(body, "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE "}");
    answer = format("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", body);
    refusal = format("HTTP/1.1 404 Not Found\r\ncontent-length: %zu\r\n\r\n%s", "");

    const char *role = "data: " CHUNK("{\"role\":\"assistant\",\"content\":\"\"}", "null") "\n\n";
    const char *content = "data: " CHUNK("{\"content\":\"" WORDS "\"}", "null") "\n\n";
    const char *finish = "data: " CHUNK("{}", "\"stop\"") "\n\n";
    const char *usage = "data: " IDENTITY("chat.completion.chunk") "\"choices\":[]," USAGE "}\n\n";
    stream[0] = format("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
                       "transfer-encoding: chunked\r\n\r\n%zx\r\n%s\r\n", role);
    for (int i = 1; i <= MARKS; i++)
        stream[i] = format("%zx\r\n%s\r\n", content);
    stream[MARKS + 1] = format("%zx\r\n%s\r\n", finish);
    stream[MARKS + 2] = format("%zx\r\n%s\r\n0\r\n\r\n", "data: [DONE]\n\n");

    memcpy(stream_usage, stream, sizeof stream);
    stream_usage[EVENTS] = stream_usage[EVENTS - 1];
    stream_usage[EVENTS - 1] = format("%zx\r\n%s\r\n", usage);
}

static void drop(struct connection *connection) {
    connections[connection->fd] = NULL;
    close(connection->fd);
    free(connection);
}

static void watch(struct connection *connection, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = connection->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
}

/* Send what may be sent; where the socket is full, epoll calls again. */
static void send_pieces(struct connection *connection) {
    while (connection->next < connection->end && connection->allowed > 0) {
        const struct piece *piece = connection->next;
        const char *rest = piece->data + connection->sent;
        ssize_t sent = send(connection->fd, rest, piece->size - connection->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            watch(connection, EPOLLIN | EPOLLOUT);
            return;
        }
        if (sent < 0) {
            drop(connection);
            return;
        }
        connection->sent += (size_t)sent;
        if (connection->sent == piece->size) {
            connection->next++;
            connection->sent = 0;
            connection->allowed--;
        }
    }
}

/* Is there a member of this name whose value begins with `value`? */
static bool has(const char *body, const char *name, char value) {
    const char *at = strstr(body, name);
    if (at == NULL)
        return false;
    at += strlen(name);
    return at[strspn(at, " :")] == value;
}

static void answer_request(struct connection *connection, const char *body) {
    connection->sent = 0;
    connection->paced = false;
    connection->allowed = EVENTS + 1;
    if (strncmp(connection->request, "POST ", 5) != 0) {
        connection->next = &refusal;
        connection->end = &refusal + 1;
    } else if (!has(body, "\"stream\"", 't')) {
        connection->next = &answer;
        connection->end = &answer + 1;
    } else {
        bool usage = has(body, "\"include_usage\"", 't');
        connection->next = usage ? stream_usage : stream;
        connection->end = usage ? stream_usage + EVENTS + 1 : stream + EVENTS;
        connection->paced = strstr(body, "\"paced\"") != NULL;
        if (connection->paced)
            connection->allowed = 1;
    }
    connection->received = 0;
    send_pieces(connection);
}

static void read_request(struct connection *connection) {
    char *free_room = connection->request + connection->received;
    ssize_t got = recv(connection->fd, free_room, REQUEST_BYTES - connection->received, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        drop(connection);
        return;
    }
    connection->received += (size_t)got;
    connection->request[connection->received] = '\0';
    const char *head_end = strstr(connection->request, "\r\n\r\n");
    if (head_end == NULL)
        return;
    const char *body = head_end + 4;
    const char *length = strcasestr(connection->request, "\r\ncontent-length:");
    size_t wanted = length != NULL && length < head_end ? strtoul(length + 17, NULL, 10) : 0;
    if ((size_t)(connection->request + connection->received - body) >= wanted)
        answer_request(connection, body);
}

static void accept_connection(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (fd >= MAX_FDS) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL)
        fail("calloc");
    connection->fd = fd;
    connections[fd] = connection;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

static void tick(int timer) {
    uint64_t expirations;
    if (read(timer, &expirations, sizeof expirations) < 0)
        return;
    for (int fd = 0; fd < MAX_FDS; fd++) {
        struct connection *connection = connections[fd];
        if (connection != NULL && connection->paced && connection->next < connection->end) {
            connection->allowed += expirations;
            send_pieces(connection);
        }
    }
}

static void add(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    prepare();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1024) < 0)
        fail("listen");
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec pace = {.it_value.tv_nsec = PACE_MS * 1000000, .it_interval.tv_nsec = PACE_MS * 1000000};
    timerfd_settime(timer, 0, &pace, NULL);
    epoll_fd = epoll_create1(0);
    add(listener);
    add(timer);

    for (;;) {
        struct epoll_event ready[MAX_READY];
        int count = epoll_wait(epoll_fd, ready, MAX_READY, -1);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                accept_connection(listener);
            } else if (fd == timer) {
                tick(timer);
            } else if (connections[fd] != NULL && ready[i].events & EPOLLOUT) {
                watch(connections[fd], EPOLLIN);
                send_pieces(connections[fd]);
            } else if (connections[fd] != NULL) {
                read_request(connections[fd]);
            }
        }
    }
}
