// Closed or open loop on Headrace's API: Generate (a stream for each request) or Session (one stream for all). One
// thread, epoll.
//
//   grpc_load --port P --path /pkg.Service/Method --body FILE --key KEY [--session 1] [--connections N]
//             [--flight N] [--tokens T] [--warm S] [--window S] [--rate R] [--pids a,b]
//
// FILE is a serialized GenerateRequest without `sampling`, with the mark of measure.h in its prompt. Prints one JSON
// object.
#define _GNU_SOURCE
#include "http2.h"

#include <signal.h>

enum { MOST = 1 << 13, SAMPLING = 7 };

static int poll_fd, connection_count = 8;
static bool session;
static const char *path = "/", *key = "";
static uint8_t *body;
static size_t body_length;
static buffer headers;
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

static void write_headers(void) {
  static char authorization[256];
  snprintf(authorization, sizeof authorization, "Bearer %s", key);
  const char *all[][2] = {{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "localhost"},
                          {"content-type", "application/grpc"}, {"te", "trailers"}, {"authorization", authorization}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) header(&headers, all[i][0], all[i][1]);
}

// GenerateRequest: what is in the file, and Sampling{max_tokens, ignore_end}, the former always two bytes long.
static void append_request(buffer *to, int tokens) {
  uint8_t sampling[SAMPLING] = {4 << 3 | 2, 5, 1 << 3, (uint8_t)tokens | 128, (uint8_t)(tokens >> 7), 10 << 3, 1};
  append(to, body, body_length);
  stamp(to->bytes + to->length - body_length, body_length);
  append(to, sampling, SAMPLING);
}

static void generate(connection *to, int tokens) {
  stream *of = open_stream(to, &headers);
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

// ---- Answers

static void on_message(stream *of, const uint8_t *at, const uint8_t *end, int64_t now) {
  if (session) read_session(at, end, now);
  else read_generate(of, at, end, now);
}

static void on_end(connection *from, stream *of, int64_t now) {
  if (session) {
    fprintf(stderr, "the session ended\n");
    exit(1);
  }
  ended(&of->now, of->well, now);
  idle[idle_count++] = (int)(from - connections);
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
  for (int i = 0; i < connection_count; i++) dial(&connections[i], plan.port, poll_fd);
  for (idle_count = 0; idle_count < plan.flight; idle_count++) {
    answers[idle_count].wanted = first_length();
    idle[idle_count] = session ? idle_count : idle_count % connection_count;
  }
  run.start_ns = now_ns();
  write_headers();
  if (session) open_stream(&connections[0], &headers);
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
