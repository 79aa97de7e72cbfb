// Closed or open loop of OpenAI chat completions as server-sent events, over HTTP/1.1 on loopback. One thread, epoll.
//
//   sse_load --port P --body FILE [--quick-ack 1]
//            [--flight N] [--tokens T] [--warm S] [--window S] [--rate R] [--pids a,b]
//
// FILE is the request's JSON: behind "max_tokens": four characters for the wanted length, and somewhere the mark of
// measure.h. A token is an event whose `content` is not empty. Prints one JSON object. An ordinary client leaves
// it to the kernel when to acknowledge, so a server without TCP_NODELAY shows the 40 ms that this costs; --quick-ack
// hides them.
#define _GNU_SOURCE
#include "measure.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { LINE = 1 << 14 };
typedef enum { IDLE, HEAD, SIZE, CHUNK, CHUNK_END, TRAILER, PLAIN } place;

typedef struct {
  int fd;
  place at;
  int status;
  bool chunked, done, failed;
  long left;  // bytes of the chunk, or of the body; -1: until the connection ends
  char head[LINE], event[LINE];
  size_t head_length, event_length;
  answer now;
} connection;

static int poll_fd, quick_ack;
static connection *connections;
static uint8_t *body;
static size_t body_length;

static bool option(const char *name, char *value) {
  if (!strcmp(name, "--body")) body = read_file(value, &body_length);
  else if (!strcmp(name, "--quick-ack")) quick_ack = atoi(value);
  else return false;
  return true;
}

static void drop(connection *of) {
  if (of->fd >= 0) close(of->fd);
  of->fd = -1;
  of->at = IDLE;
}

static bool dial(connection *of) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(plan.port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int on = 1;
  of->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(of->fd, (void *)&to, sizeof to)) {
    drop(of);
    return false;
  }
  setsockopt(of->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, of->fd, &(struct epoll_event){EPOLLIN, {.ptr = of}});
  return true;
}

static void ask(connection *of) {
  static char text[1 << 21];
  begin(&of->now);
  if (of->fd < 0 && !dial(of)) {
    ended(&of->now, false, 0);
    usleep(1000);
    return;
  }
  char *length = memmem(body, body_length, "\"max_tokens\":", 13);
  char number[5];
  snprintf(number, sizeof number, "%4d", of->now.wanted);
  memcpy(length + 13, number, 4);
  int head = sprintf(text,
                     "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
                     "authorization: Bearer bench\r\naccept: text/event-stream\r\ncontent-length: %zu\r\n\r\n",
                     plan.port, body_length);
  memcpy(text + head, body, body_length);
  stamp((uint8_t *)text + head, body_length);
  of->at = HEAD;
  of->head_length = of->event_length = 0;
  of->done = of->failed = false;
  for (size_t sent = 0, all = (size_t)head + body_length; sent < all;) {
    ssize_t wrote = send(of->fd, text + sent, all - sent, MSG_NOSIGNAL);
    if (wrote < 0) break;  // the answer will be missing, and that is counted
    sent += (size_t)wrote;
  }
}

static void finish(connection *of, bool closed, int64_t now) {
  ended(&of->now, of->status == 200 && of->done && !of->failed, now);
  of->at = IDLE;
  of->now.wanted = plan.tokens;
  if (closed) drop(of);
}

static void event(connection *of, const char *line, size_t length, int64_t now) {
  if (length < 6 || memcmp(line, "data:", 5)) return;
  if (memmem(line, length, "[DONE]", 6)) {
    of->done = true;
    return;
  }
  const char *content = memmem(line, length, "\"content\":\"", 11);
  if (content && content + 11 < line + length && content[11] != '"') arrived(&of->now, 1, now);
  else if (memmem(line, length, "\"error\"", 7)) of->failed = true;
}

static void payload(connection *of, const char *data, size_t length, int64_t now) {
  while (length) {
    const char *end = memchr(data, '\n', length);
    size_t piece = end ? (size_t)(end - data) : length;
    if (!of->event_length && end) {
      event(of, data, piece, now);
    } else {
      size_t kept = piece < LINE - of->event_length ? piece : LINE - of->event_length;
      memcpy(of->event + of->event_length, data, kept);
      of->event_length += kept;
      if (end) {
        event(of, of->event, of->event_length, now);
        of->event_length = 0;
      }
    }
    piece += end != NULL;
    data += piece;
    length -= piece;
  }
}

// Adds up to a line's end to of->head; returns the bytes taken, and whether the line is whole.
static size_t line(connection *of, const char *data, size_t length, bool *whole) {
  const char *end = memchr(data, '\n', length);
  size_t taken = end ? (size_t)(end - data) + 1 : length;
  size_t kept = taken < LINE - 1 - of->head_length ? taken : LINE - 1 - of->head_length;
  memcpy(of->head + of->head_length, data, kept);
  of->head_length += kept;
  of->head[of->head_length] = 0;
  *whole = end != NULL;
  return taken;
}

static void header(connection *of) {
  if (!strncmp(of->head, "HTTP/", 5)) {
    of->status = atoi(of->head + 9);
    of->chunked = false;
    of->left = -1;
  } else if (!strncasecmp(of->head, "content-length:", 15)) {
    of->left = atol(of->head + 15);
  } else if (!strncasecmp(of->head, "transfer-encoding: chunked", 26)) {
    of->chunked = true;
  }
}

// A whole line that is not payload: of the head, or around a chunk.
static void framing(connection *of, int64_t now) {
  bool empty = of->head[0] == '\r' || of->head[0] == '\n';
  switch (of->at) {
    case HEAD:
      if (!empty) header(of);
      else of->at = of->chunked ? SIZE : PLAIN;
      if (of->at == PLAIN && of->left == 0) finish(of, false, now);
      break;
    case SIZE:
      of->left = strtol(of->head, NULL, 16);
      of->at = of->left > 0 ? CHUNK : TRAILER;
      break;
    case CHUNK_END: of->at = SIZE; break;
    case TRAILER:
      if (empty) finish(of, false, now);
      break;
    default: break;
  }
}

static void hear(connection *of, const char *data, size_t length, int64_t now) {
  while (length && of->at != IDLE) {
    size_t taken = length;
    if (of->at == CHUNK || of->at == PLAIN) {
      if (of->left >= 0 && (long)taken > of->left) taken = (size_t)of->left;
      payload(of, data, taken, now);
      if (of->left >= 0) of->left -= (long)taken;
      if (!of->left && of->at == CHUNK) of->at = CHUNK_END;
      else if (!of->left) finish(of, false, now);
    } else {
      bool whole = false;
      taken = line(of, data, length, &whole);
      if (whole) {
        framing(of, now);
        of->head_length = 0;
      }
    }
    data += taken;
    length -= taken;
  }
}

int main(int count, char **words) {
  signal(SIGPIPE, SIG_IGN);
  read_options(count, words, option);
  if (!body || !memmem(body, body_length, "\"max_tokens\":", 13)) {
    fprintf(stderr, "--body FILE, with \"max_tokens\":TTTT in it\n");
    return 2;
  }
  poll_fd = epoll_create1(0);
  connections = calloc((size_t)plan.flight, sizeof *connections);
  srand(7);
  run.start_ns = now_ns();
  for (int i = 0; i < plan.flight; i++) {
    connections[i].fd = -1;
    connections[i].now.wanted = first_length();
    if (plan.rate == 0) ask(&connections[i]);
  }
  static char data[1 << 16];
  struct epoll_event events[512];
  int64_t arrival = run.start_ns;
  for (int64_t now = run.start_ns; !over(now); now = now_ns()) {
    for (; plan.rate > 0 && now >= arrival; arrival = next_arrival(arrival)) {
      int free = 0;
      while (free < plan.flight && connections[free].at != IDLE) free++;
      if (free < plan.flight) ask(&connections[free]);
      else run.unsent += run.on;
    }
    int64_t wait_ns = plan.rate > 0 && arrival - now < 2000000 ? arrival - now : 2000000;
    struct timespec wait = {0, wait_ns > 0 ? wait_ns : 0};
    int ready = epoll_pwait2(poll_fd, events, 512, &wait, NULL);
    for (int i = 0; i < ready; i++) {
      connection *of = events[i].data.ptr;
      ssize_t got = recv(of->fd, data, sizeof data, MSG_DONTWAIT);
      if (got < 0 && errno == EAGAIN) continue;
      now = now_ns();
      if (quick_ack && got > 0) setsockopt(of->fd, IPPROTO_TCP, TCP_QUICKACK, &quick_ack, sizeof quick_ack);
      if (got > 0) hear(of, data, (size_t)got, now);
      else if (of->at != IDLE) finish(of, true, now);
      else drop(of);
      if (of->at == IDLE && plan.rate == 0) ask(of);
    }
    for (int i = 0; plan.rate == 0 && i < plan.flight; i++)
      if (connections[i].at == IDLE) ask(&connections[i]);
  }
  report();
  return 0;
}
