// Closed or open loop on Headrace's API, over HTTP/2 on loopback: Generate (a stream for each request) or Session (one
// stream for all). One thread, epoll.
//
//   grpc_load --port P --path /pkg.Service/Method --body FILE --key KEY [--session 1] [--connections N]
//             [--flight N] [--tokens T] [--warm S] [--window S] [--rate R] [--pids a,b]
//
// FILE is a serialized GenerateRequest without `sampling`, with the mark of measure.h in its prompt. HTTP/2 is spoken here, and not by a
// library: what comes back is only looked at as far as it is counted, so no header is ever decoded (ours are sent
// without compression, and a stream ended well if its last message said so).
#define _GNU_SOURCE
#include "measure.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { FRAME = 1 << 14, RECEIVED = 1 << 18, GRANT = 1 << 20, SLOTS = 1 << 10, MOST = 1 << 13, SAMPLING = 7 };
enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
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

static int poll_fd, connection_count = 8;
static bool session;
static const char *path = "/", *key = "";
static uint8_t *body;
static size_t body_length;
static connection *connections;
static answer answers[MOST];  // of Session, by the number of the request
static int idle[MOST];        // who may ask: numbers of requests with Session, with Generate connections
static int idle_count;

static bool option(const char *name, char *value) {
  if (!strcmp(name, "--path")) path = value;
  else if (!strcmp(name, "--key")) key = value;
  else if (!strcmp(name, "--body")) body = read_file(value, &body_length);
  else if (!strcmp(name, "--session")) session = atoi(value);
  else if (!strcmp(name, "--connections")) connection_count = atoi(value);
  else return false;
  return true;
}

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

static stream *open_stream(connection *to) {
  static buffer block;
  static char authorization[256];
  if (!block.length) {
    snprintf(authorization, sizeof authorization, "Bearer %s", key);
    const char *headers[][2] = {{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "localhost"},
                                {"content-type", "application/grpc"}, {"te", "trailers"}, {"authorization", authorization}};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) header(&block, headers[i][0], headers[i][1]);
  }
  while (to->streams[to->next_id / 2 % SLOTS].open) to->next_id += 2;
  stream *of = &to->streams[to->next_id / 2 % SLOTS];
  of->id = to->next_id;
  to->next_id += 2;
  of->open = true;
  of->well = of->half_closed = false;
  of->window = to->first_window;
  of->granted = of->in.length = of->in.start = of->out.length = of->out.start = 0;
  frame(to, block.length, HEADERS, END_HEADERS, of->id);
  append(&to->out, block.bytes, block.length);
  return of;
}

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

// ---- Protocol Buffers

static uint64_t varint(const uint8_t **at, const uint8_t *end) {
  uint64_t value = 0;
  for (int shift = 0; *at < end; shift += 7) {
    uint8_t byte = *(*at)++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) break;
  }
  return value;
}

static size_t put_varint(uint8_t *to, uint64_t value) {
  size_t length = 0;
  for (; value > 127; value >>= 7) to[length++] = (uint8_t)value | 128;
  to[length++] = (uint8_t)value;
  return length;
}

typedef struct {
  uint32_t field;
  const uint8_t *bytes;  // NULL for a number
  size_t length;
  uint64_t value;
} field;

static bool next_field(const uint8_t **at, const uint8_t *end, field *found) {
  if (*at >= end) return false;
  uint64_t tag = varint(at, end);
  *found = (field){.field = (uint32_t)(tag >> 3)};
  if ((tag & 7) == 0) {
    found->value = varint(at, end);
  } else if ((tag & 7) == 2) {
    found->length = varint(at, end);
    found->bytes = *at;
    *at += found->length;
  } else {
    *at += (tag & 7) == 1 ? 8 : 4;
  }
  return *at <= end;
}

// ---- Requests

// GenerateRequest: what is in the file, and Sampling{max_tokens, ignore_end}, the former always two bytes long.
static void append_request(buffer *to, int tokens) {
  uint8_t sampling[SAMPLING] = {4 << 3 | 2, 5, 1 << 3, (uint8_t)tokens | 128, (uint8_t)(tokens >> 7), 10 << 3, 1};
  append(to, body, body_length);
  stamp(to->bytes + to->length - body_length, body_length);
  append(to, sampling, SAMPLING);
}

static void generate(connection *to, int tokens) {
  stream *of = open_stream(to);
  of->now.wanted = tokens;
  begin(&of->now);
  message(of, body_length + SAMPLING);
  append_request(&of->out, tokens);
  of->half_closed = true;
  send_data(to, of);
}

// SessionRequest{generates: {id, request}…} for the numbers that are idle; the open loop asks one by one.
static void ask_session(connection *to, stream *of) {
  static buffer text;
  text.length = text.start = 0;
  do {
    int number = idle[--idle_count];
    uint8_t inner[32] = {1 << 3}, head[16] = {1 << 3 | 2};
    size_t length = 1 + put_varint(inner + 1, (uint64_t)number + 1);
    inner[length++] = 2 << 3 | 2;
    length += put_varint(inner + length, body_length + SAMPLING);
    append(&text, head, 1 + put_varint(head + 1, length + body_length + SAMPLING));
    append(&text, inner, length);
    append_request(&text, answers[number].wanted);
    begin(&answers[number]);
  } while (idle_count && plan.rate == 0);
  message(of, text.length);
  append(&of->out, text.bytes, text.length);
  send_data(to, of);
}

// GenerateResponse: token ids (3), or else text (2), and finish (5).
static void read_generate(stream *of, const uint8_t *at, const uint8_t *end, int64_t now) {
  int tokens = 0, texts = 0;
  for (field found; next_field(&at, end, &found);) {
    if (found.field == 2) texts = found.length > 0;
    if (found.field == 3 && found.bytes)
      for (size_t i = 0; i < found.length; i++) tokens += found.bytes[i] < 128;
    if (found.field == 5) of->well = true;
  }
  if (tokens || texts) arrived(&of->now, tokens ? tokens : 1, now);
}

// SessionResponse: ids (1) with their counts (2), and ends (6).
static void read_session(const uint8_t *at, const uint8_t *end, int64_t now) {
  const uint8_t *ids = NULL, *ids_end = NULL;
  for (field found; next_field(&at, end, &found);) {
    const uint8_t *inner = found.bytes, *inner_end = found.bytes + found.length;
    if (found.field == 1) {
      ids = inner;
      ids_end = inner_end;
    } else if (found.field == 2) {
      while (inner < inner_end && ids < ids_end) {
        uint64_t number = varint(&ids, ids_end) - 1, count = varint(&inner, inner_end);
        if (number < MOST && count) arrived(&answers[number], (int)count, now);
      }
    } else if (found.field == 6) {
      uint64_t number = 0;
      bool well = false;
      for (field part; next_field(&inner, inner_end, &part);) {
        if (part.field == 1) number = part.value - 1;
        if (part.field == 3) well = true;
      }
      if (number >= MOST) continue;
      ended(&answers[number], well, now);
      answers[number].wanted = plan.tokens;
      idle[idle_count++] = (int)number;
    }
  }
}

// ---- Receiving

static void close_stream(connection *from, stream *of, int64_t now) {
  if (!of->open) return;
  of->open = false;
  if (session) {
    fprintf(stderr, "the session ended\n");
    exit(1);
  }
  ended(&of->now, of->well, now);
  idle[idle_count++] = (int)(from - connections);
}

static void take_data(connection *from, stream *of, const uint8_t *data, size_t length, int64_t now) {
  append(&of->in, data, length);
  while (of->in.length - of->in.start >= 5) {
    const uint8_t *head = of->in.bytes + of->in.start;
    size_t size = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
    if (of->in.length - of->in.start < 5 + size) break;
    if (session) read_session(head + 5, head + 5 + size, now);
    else read_generate(of, head + 5, head + 5 + size, now);
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
  if (of && (type == RST_STREAM || ((type == DATA || type == HEADERS) && flags & END_STREAM))) close_stream(from, of, now);
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

static void dial(connection *of) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(plan.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
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

// Starts what may start now: all, or one with the open loop.
static void ask(bool first) {
  while (idle_count) {
    if (session) ask_session(&connections[0], &connections[0].streams[0]);
    else generate(&connections[idle[--idle_count]], first ? first_length() : plan.tokens);
    if (plan.rate > 0) return;
  }
}

int main(int count, char **words) {
  signal(SIGPIPE, SIG_IGN);
  read_options(count, words, option);
  if (!body || connection_count < 1) {
    fprintf(stderr, "--body FILE, --connections from 1\n");
    return 2;
  }
  if (session) connection_count = 1;
  if (connection_count > plan.flight) connection_count = plan.flight;
  poll_fd = epoll_create1(0);
  srand(7);
  connections = calloc((size_t)connection_count, sizeof *connections);
  for (int i = 0; i < connection_count; i++) dial(&connections[i]);
  for (idle_count = 0; idle_count < plan.flight; idle_count++) {
    answers[idle_count].wanted = first_length();
    idle[idle_count] = session ? idle_count : idle_count % connection_count;
  }
  run.start_ns = now_ns();
  if (session) open_stream(&connections[0]);
  if (plan.rate == 0) ask(true);
  struct epoll_event events[64];
  int64_t arrival = run.start_ns;
  for (int64_t now = run.start_ns; !over(now); now = now_ns()) {
    if (plan.rate == 0) ask(false);
    for (; plan.rate > 0 && now >= arrival; arrival = next_arrival(arrival)) {
      if (idle_count) ask(false);
      else run.unsent += run.on;
    }
    for (int i = 0; i < connection_count; i++) flush(&connections[i]);
    int64_t wait_ns = plan.rate > 0 && arrival - now < 2000000 ? arrival - now : 2000000;
    struct timespec wait = {0, wait_ns > 0 ? wait_ns : 0};
    int ready = epoll_pwait2(poll_fd, events, 64, &wait, NULL);
    for (int i = 0; i < ready; i++) hear(events[i].data.ptr);
  }
  report();
  return 0;
}
