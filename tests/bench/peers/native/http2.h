// HTTP/2 as a client of gRPC needs it on loopback, without TLS. No library: what comes back is only looked at as far as
// it is counted. No header is ever decoded (ours are sent without compression); whether a stream ended well, its last
// message says. Whoever includes this defines on_message and on_end.
#ifndef HTTP2_H
#define HTTP2_H

#include "measure.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { FRAME = 1 << 14, RECEIVED = 1 << 18, GRANT = 1 << 20, SLOTS = 1 << 10 };
enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };

typedef struct {
  uint8_t *bytes;
  size_t length, size, start;
} buffer;

// A stream of HTTP/2. A connection's ids are 1, 3, 5…, so one is found by its id; its slot is used again.
typedef struct {
  uint32_t id;
  bool open, well;
  int64_t window;  // what the server still takes
  size_t granted;  // bytes received since the last grant
  buffer in, out;
  bool half_closed;  // after what is in `out`
  answer now;        // of Generate
} stream;

typedef struct {
  int fd;
  uint32_t next_id;
  bool blocked;  // some stream waits for a window
  int64_t window, first_window;
  size_t granted;
  buffer in, out;
  stream *streams;  // SLOTS of them
} connection;

// A whole message of gRPC has come.
static void on_message(stream *of, const uint8_t *at, const uint8_t *end, int64_t now);

// A stream has ended, well or not.
static void on_end(connection *from, stream *of, int64_t now);

static uint8_t *room(buffer *of, size_t more) {
  if (of->start == of->length) of->start = of->length = 0;
  if (of->length + more > of->size) {
    of->size = (of->length + more) * 2;
    of->bytes = realloc(of->bytes, of->size);
  }
  return of->bytes + of->length;
}

static void append(buffer *of, const void *data, size_t length) {
  memcpy(room(of, length), data, length);
  of->length += length;
}

// ---- Sending

static void frame(connection *to, size_t length, uint8_t type, uint8_t flags, uint32_t id) {
  uint8_t head[9] = {length >> 16, length >> 8, length, type, flags, id >> 24, id >> 16, id >> 8, id};
  append(&to->out, head, sizeof head);
}

static void number32(connection *to, uint32_t value) {
  uint8_t bytes[4] = {value >> 24, value >> 16, value >> 8, value};
  append(&to->out, bytes, sizeof bytes);
}

static void grant(connection *to, uint32_t id, size_t *received, size_t more) {
  if ((*received += more) < GRANT) return;
  frame(to, 4, WINDOW_UPDATE, 0, id);
  number32(to, (uint32_t)*received);
  *received = 0;
}

// A header that the server is not to remember (RFC 7541, 6.2.2), without Huffman's code.
static void header(buffer *to, const char *name, const char *value) {
  uint8_t zero = 0;
  append(to, &zero, 1);
  for (int i = 0; i < 2; i++) {
    const char *text = i ? value : name;
    size_t length = strlen(text);
    uint8_t prefix[2] = {length < 127 ? (uint8_t)length : 127, (uint8_t)(length - 127)};  // below 255
    append(to, prefix, length < 127 ? 1 : 2);
    append(to, text, length);
  }
}

static stream *open_stream(connection *to, const buffer *headers) {
  while (to->streams[to->next_id / 2 % SLOTS].open) to->next_id += 2;
  stream *of = &to->streams[to->next_id / 2 % SLOTS];
  of->id = to->next_id;
  to->next_id += 2;
  of->open = true;
  of->well = of->half_closed = false;
  of->window = to->first_window;
  of->granted = of->in.length = of->in.start = of->out.length = of->out.start = 0;
  frame(to, headers->length, HEADERS, END_HEADERS, of->id);
  append(&to->out, headers->bytes, headers->length);
  return of;
}

// Begins a message of gRPC.
static void message(stream *of, size_t length) {
  uint8_t head[5] = {0, length >> 24, length >> 16, length >> 8, length};
  append(&of->out, head, sizeof head);
}

// As much of a stream's data as both windows let through.
static void send_data(connection *to, stream *of) {
  while (of->open && of->out.start < of->out.length) {
    int64_t length = (int64_t)(of->out.length - of->out.start);
    if (length > FRAME) length = FRAME;
    if (length > of->window) length = of->window;
    if (length > to->window) length = to->window;
    if (length <= 0) {
      to->blocked = true;
      return;
    }
    bool last = of->half_closed && of->out.start + (size_t)length == of->out.length;
    frame(to, (size_t)length, DATA, last ? END_STREAM : 0, of->id);
    append(&to->out, of->out.bytes + of->out.start, (size_t)length);
    of->out.start += (size_t)length;
    of->window -= length;
    to->window -= length;
  }
}

static void flush(connection *of) {
  while (of->out.start < of->out.length) {
    ssize_t wrote = send(of->fd, of->out.bytes + of->out.start, of->out.length - of->out.start, MSG_NOSIGNAL);
    if (wrote < 0) {
      perror("send");
      exit(1);
    }
    of->out.start += (size_t)wrote;
  }
}

// ---- Receiving

static void take_data(connection *from, stream *of, const uint8_t *data, size_t length, int64_t now) {
  append(&of->in, data, length);
  while (of->in.length - of->in.start >= 5) {
    const uint8_t *head = of->in.bytes + of->in.start;
    size_t size = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
    if (of->in.length - of->in.start < 5 + size) break;
    on_message(of, head + 5, head + 5 + size, now);
    of->in.start += 5 + size;
  }
  if (of->in.start > FRAME) {
    memmove(of->in.bytes, of->in.bytes + of->in.start, of->in.length -= of->in.start);
    of->in.start = 0;
  }
  grant(from, of->id, &of->granted, length);
}

static void settings(connection *from, const uint8_t *data, size_t length) {
  for (; length >= 6; data += 6, length -= 6) {
    int64_t value = (int64_t)data[2] << 24 | data[3] << 16 | data[4] << 8 | data[5];
    if ((data[0] << 8 | data[1]) != 4) continue;  // SETTINGS_INITIAL_WINDOW_SIZE
    for (int i = 0; i < SLOTS; i++) from->streams[i].window += value - from->first_window;
    from->first_window = value;
  }
  frame(from, 0, SETTINGS, ACK, 0);
}

static void take_frame(connection *from, uint8_t type, uint8_t flags, uint32_t id, const uint8_t *data, size_t length,
                       int64_t now) {
  stream *of = id ? &from->streams[id / 2 % SLOTS] : NULL;
  if (of && of->id != id) of = NULL;
  if (type == DATA && of) {
    grant(from, 0, &from->granted, length);
    take_data(from, of, data, length, now);
  } else if (type == SETTINGS && !(flags & ACK)) {
    settings(from, data, length);
  } else if (type == PING && !(flags & ACK)) {
    frame(from, 8, PING, ACK, 0);
    append(&from->out, data, 8);
  } else if (type == WINDOW_UPDATE) {
    int64_t more = (int64_t)(data[0] & 127) << 24 | data[1] << 16 | data[2] << 8 | data[3];
    if (of) of->window += more;
    else if (!id) from->window += more;
    bool was_blocked = from->blocked;
    from->blocked = false;
    for (int i = 0; was_blocked && i < SLOTS; i++) send_data(from, &from->streams[i]);
  } else if (type == GOAWAY) {
    fprintf(stderr, "the server says goodbye\n");
    exit(1);
  }
  bool last = type == RST_STREAM || ((type == DATA || type == HEADERS) && flags & END_STREAM);
  if (of && of->open && last) {
    of->open = false;
    on_end(from, of, now);
  }
}

static void hear(connection *from) {
  ssize_t got = recv(from->fd, room(&from->in, RECEIVED), RECEIVED, MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    fprintf(stderr, "the server hung up\n");
    exit(1);
  }
  int64_t now = now_ns();
  from->in.length += (size_t)got;
  while (from->in.length - from->in.start >= 9) {
    const uint8_t *head = from->in.bytes + from->in.start;
    size_t length = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
    if (from->in.length - from->in.start < 9 + length) break;
    uint32_t id = ((uint32_t)head[5] << 24 | head[6] << 16 | head[7] << 8 | head[8]) & 0x7fffffff;
    from->in.start += 9 + length;
    take_frame(from, head[3], head[4], id, head + 9, length, now);
  }
  memmove(from->in.bytes, from->in.bytes + from->in.start, from->in.length -= from->in.start);
  from->in.start = 0;
}

static void dial(connection *of, int port, int poll_fd) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int on = 1;
  of->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(of->fd, (void *)&to, sizeof to)) {
    perror("connect");
    exit(1);
  }
  setsockopt(of->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, of->fd, &(struct epoll_event){EPOLLIN, {.ptr = of}});
  of->streams = calloc(SLOTS, sizeof *of->streams);
  of->next_id = 1;
  of->window = of->first_window = 65535;
  append(&of->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
  const uint8_t wanted[12] = {0, 2, 0, 0, 0, 0, 0, 4, 0x40, 0, 0, 0};  // no pushes; 1 GiB for a stream
  frame(of, sizeof wanted, SETTINGS, 0, 0);
  append(&of->out, wanted, sizeof wanted);
  frame(of, 4, WINDOW_UPDATE, 0, 0);
  number32(of, 1 << 30);
}

#endif
