// A simulated engine with OpenAI's API for chat completions, always streamed: server-sent events over HTTP/1.1 on
// loopback. One thread, epoll.
//
//   sse_engine PORT[,PORT...] [STEP_US]       GET /control?step_us=N sets the time of a step
//
// Every step gives one token to every stream: one event, one chunk, one write. That is what a continuously batched
// engine does to a proxy. Steps that take no time follow each other at once. The first token comes without waiting.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST = 1 << 16, OUT = 1 << 18, MOST_STREAMS = 8192 };

typedef struct connection {
  int fd;
  bool listens;
  int stream;  // its place among the streams; -1: none
  int sent, wanted;
  unsigned number;
  size_t in_length, out_length, out_sent, out_size;
  char *in, *out;
} connection;

static int poll_fd, stream_count;
static connection *streams[MOST_STREAMS];
static int64_t step_ns;
static unsigned requests;

static int64_t now_ns(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void watch(connection *of, int how, uint32_t what) {
  epoll_ctl(poll_fd, how, of->fd, &(struct epoll_event){what, {.ptr = of}});
}

static void end_stream(connection *of) {
  if (of->stream < 0) return;
  streams[of->stream] = streams[--stream_count];
  streams[of->stream]->stream = of->stream;
  of->stream = -1;
}

static void hang_up(connection *of) {
  end_stream(of);
  close(of->fd);
  free(of->in);
  free(of->out);
  free(of);
}

// Writes what waits; false when the connection is gone.
static bool flush(connection *of) {
  while (of->out_sent < of->out_length) {
    ssize_t wrote = send(of->fd, of->out + of->out_sent, of->out_length - of->out_sent, MSG_NOSIGNAL);
    if (wrote < 0 && errno != EAGAIN) return false;
    if (wrote < 0) {
      watch(of, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
      return true;
    }
    of->out_sent += (size_t)wrote;
  }
  of->out_sent = of->out_length = 0;
  return true;
}

static bool put(connection *of, const char *data, size_t length) {
  if (of->out_length + length > OUT) return false;  // a reader that fell this far behind is gone
  if (of->out_length + length > of->out_size) {
    of->out_size = of->out_length + length + 4096;
    of->out = realloc(of->out, of->out_size);
  }
  memcpy(of->out + of->out_length, data, length);
  of->out_length += length;
  return flush(of);
}

static int chunk(char *to, const char *data) { return sprintf(to, "%zx\r\n%s\r\n", strlen(data), data); }

static int event(char *to, const connection *of, const char *delta, const char *finish) {
  char data[512];
  snprintf(data, sizeof data,
           "data: {\"id\":\"chatcmpl-%08x\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
           "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{%s},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
           of->number, delta, finish);
  return chunk(to, data);
}

// The next token of a stream; false when its connection is gone. Its text is its number: gaps and repeats can be seen.
static bool token(connection *of) {
  char text[4096], delta[64];
  int length = 0;
  if (of->sent == 0) {
    length = sprintf(text, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    length += event(text + length, of, "\"role\":\"assistant\",\"content\":\"\"", "null");
  }
  snprintf(delta, sizeof delta, "\"content\":\" %d\"", of->sent++);
  length += event(text + length, of, delta, "null");
  if (of->sent >= of->wanted) {
    length += event(text + length, of, "", "\"length\"");
    length += chunk(text + length, "data: [DONE]\n\n");
    length += sprintf(text + length, "0\r\n\r\n");
    end_stream(of);
  }
  return put(of, text, (size_t)length);
}

static bool reply(connection *of, const char *json) {
  char text[1024];
  int length = snprintf(text, sizeof text,
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                        strlen(json), json);
  return put(of, text, (size_t)length);
}

static bool starts(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }

static int number_behind(const char *text, const char *name, int otherwise) {
  const char *found = strstr(text, name);
  return found ? atoi(found + strlen(name)) : otherwise;
}

static bool answer(connection *of, const char *head, const char *body) {
  if (starts(head, "POST /v1/chat/completions")) {
    of->wanted = number_behind(body, "\"max_tokens\":", number_behind(body, "\"max_completion_tokens\":", 16));
    of->sent = 0;
    of->number = ++requests;
    if (stream_count == MOST_STREAMS) return false;
    of->stream = stream_count;
    streams[stream_count++] = of;
    return token(of);
  }
  if (starts(head, "GET /control")) {
    step_ns = number_behind(head, "step_us=", (int)(step_ns / 1000)) * 1000LL;
    return reply(of, "{}");
  }
  if (starts(head, "GET /v1/models"))
    return reply(of, "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,"
                     "\"owned_by\":\"bench\",\"root\":\"bench\",\"max_model_len\":32768}]}");
  if (starts(head, "GET /get_model_info") || starts(head, "GET /model_info") || starts(head, "GET /get_server_info") ||
      starts(head, "GET /server_info"))
    return reply(of, "{\"model_path\":\"bench\",\"model_id\":\"bench\",\"served_model_name\":\"bench\","
                     "\"is_generation\":true,\"version\":\"0.5.5\",\"tp_size\":1,\"dp_size\":1,"
                     "\"disaggregation_mode\":\"null\"}");
  if (starts(head, "GET /version")) return reply(of, "{\"version\":\"0.11.0\"}");
  return reply(of, "{\"status\":\"ok\"}");
}

// Answers every request that is whole; a connection has one at a time. False when it is gone.
static bool serve(connection *of) {
  while (of->stream < 0 && of->in_length) {
    of->in[of->in_length] = 0;
    char *end = strstr(of->in, "\r\n\r\n");
    if (!end) return of->in_length < REQUEST - 1;
    size_t head = (size_t)(end + 4 - of->in), length = 0;
    *end = 0;
    const char *declared = strcasestr(of->in, "\r\ncontent-length:");
    bool chunked = strcasestr(of->in, "\r\ntransfer-encoding: chunked") != NULL;
    *end = '\r';
    if (declared) length = strtoul(declared + 17, NULL, 10);
    if (chunked) {
      const char *last = strstr(of->in + head, "\r\n0\r\n\r\n");
      if (!last) return of->in_length < REQUEST - 1;
      length = (size_t)(last + 7 - (of->in + head));
    }
    if (of->in_length < head + length) return of->in_length < REQUEST - 1;
    char kept = of->in[head + length];
    of->in[head + length] = 0;
    if (!answer(of, of->in, of->in + head)) return false;
    of->in[head + length] = kept;
    of->in_length -= head + length;
    memmove(of->in, of->in + head + length, of->in_length);
  }
  return true;
}

static void listen_on(int port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  connection *of = calloc(1, sizeof *of);
  int on = 1;
  of->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  of->listens = true;
  of->stream = -1;
  setsockopt(of->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(of->fd, (void *)&at, sizeof at) || listen(of->fd, 4096)) {
    perror("bind");
    exit(1);
  }
  watch(of, EPOLL_CTL_ADD, EPOLLIN);
}

static void accept_all(connection *from) {
  for (int fd; (fd = accept4(from->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection *of = calloc(1, sizeof *of);
    of->fd = fd;
    of->stream = -1;
    of->in = malloc(REQUEST);
    watch(of, EPOLL_CTL_ADD, EPOLLIN);
  }
}

static void hear(connection *of, uint32_t what) {
  if (what & EPOLLOUT) {
    if (!flush(of)) return hang_up(of);
    if (!of->out_length) watch(of, EPOLL_CTL_MOD, EPOLLIN);
  }
  if (!(what & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
  ssize_t got = recv(of->fd, of->in + of->in_length, REQUEST - 1 - of->in_length, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) return hang_up(of);
  of->in_length += (size_t)got;
  if (!serve(of)) hang_up(of);
}

static void step(void) {
  for (int i = stream_count - 1; i >= 0; i--) {  // backwards: who ends is replaced by one that was served
    connection *of = streams[i];
    if (!token(of) || (of->stream < 0 && !serve(of))) hang_up(of);
  }
}

int main(int count, char **words) {
  signal(SIGPIPE, SIG_IGN);
  if (count < 2) {
    fprintf(stderr, "usage: sse_engine PORT[,PORT...] [STEP_US]\n");
    return 2;
  }
  if (count > 2) step_ns = atoi(words[2]) * 1000LL;
  poll_fd = epoll_create1(0);
  for (char *port = strtok(words[1], ","); port; port = strtok(NULL, ",")) listen_on(atoi(port));
  struct epoll_event events[512];
  int64_t next = now_ns();
  for (;;) {
    int64_t wait_ns = stream_count ? next - now_ns() : 1000000000;
    if (wait_ns < 0) wait_ns = 0;
    struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
    int ready = epoll_pwait2(poll_fd, events, 512, &wait, NULL);
    bool was_idle = !stream_count;
    for (int i = 0; i < ready; i++) {
      connection *of = events[i].data.ptr;
      if (of->listens) accept_all(of);
      else hear(of, events[i].events);
    }
    int64_t now = now_ns();
    if (was_idle || !stream_count) {
      next = now + step_ns;
    } else if (now >= next) {
      step();
      next = next + step_ns > now - 10 * step_ns ? next + step_ns : now + step_ns;  // what is lost stays lost
    }
  }
}
