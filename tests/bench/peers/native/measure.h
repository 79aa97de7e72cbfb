// What both load generators share: a clock, histograms, the CPU time of other processes, and the report.
//
// One window is measured. At both of its edges the CPU time of the processes in --pids is read here, and not by whoever
// started the generator: under load that would be late by some milliseconds.
#ifndef MEASURE_H
#define MEASURE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static inline int64_t now_ns(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * 1000000000LL + at.tv_nsec;
}

// ---- Histograms: 64 buckets for each power of two, so a quantile is right to 1.6 %.

enum { BUCKETS = 64 * 48 };
typedef struct {
  uint64_t counts[BUCKETS], total;
} histogram;

static inline int bucket_of(uint64_t us) {
  if (us < 64) return (int)us;
  int power = 63 - __builtin_clzll(us);
  int bucket = (power - 5) * 64 + (int)((us >> (power - 6)) & 63);
  return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static inline uint64_t value_of(int bucket) {
  if (bucket < 64) return (uint64_t)bucket;
  int power = bucket / 64 + 5;
  return (1ULL << power) + ((uint64_t)(bucket % 64) << (power - 6)) + (1ULL << (power - 6)) / 2;
}

static inline void observe(histogram *of, int64_t ns) {
  of->counts[bucket_of(ns > 0 ? (uint64_t)ns / 1000 : 0)]++;
  of->total++;
}

static inline uint64_t quantile(const histogram *of, double share) {
  uint64_t rank = (uint64_t)(share * (double)of->total), seen = 0;
  for (int i = 0; i < BUCKETS; i++)
    if ((seen += of->counts[i]) > rank) return value_of(i);
  return 0;
}

static inline void print_histogram(const char *name, const histogram *of) {
  printf("\"%s\":{\"n\":%lu,\"p50\":%lu,\"p90\":%lu,\"p99\":%lu},", name, of->total, quantile(of, .5), quantile(of, .9),
         quantile(of, .99));
}

// ---- CPU time

// Of a process since its start, in seconds, threads that have ended included. To the nanosecond, where /proc/PID/stat
// counts ticks of 10 ms.
static inline double process_cpu_s(int pid) {
  clockid_t clock;
  struct timespec used;
  if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &used)) return 0;
  return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

// Of the whole machine since its start, in seconds: what anything used, and what the host took away.
static inline void machine_cpu_s(double *busy, double *stolen) {
  unsigned long user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0, steal = 0;
  FILE *file = fopen("/proc/stat", "r");
  if (file) {
    int read = fscanf(file, "cpu %lu %lu %lu %lu %lu %lu %lu %lu", &user, &nice, &system, &idle, &wait, &irq, &soft,
                      &steal);
    if (read != 8) fprintf(stderr, "/proc/stat is not as expected\n");
    fclose(file);
  }
  double hertz = (double)sysconf(_SC_CLK_TCK);
  *busy = (double)(user + nice + system + irq + soft) / hertz;
  *stolen = (double)steal / hertz;
}

static inline double own_cpu_s(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

// ---- One run

enum { MOST_PROCESSES = 128 };

// What a run is told. Times are seconds.
static struct {
  int port, flight, tokens;
  double warm, window, rate;  // rate: requests/s of an open loop; 0 is a closed loop of `flight`
} plan = {.flight = 1, .tokens = 128, .warm = 1, .window = 4};

static struct {
  int64_t start_ns, from_ns, to_ns;
  bool on;
  uint64_t done, failed, tokens, merged, unsent;
  histogram first, gap, whole;
} run;

static struct {
  int pid;
  double before, after;
} processes[MOST_PROCESSES];
static int process_count;
static double busy[2], stolen[2], own[2];

static inline void add_processes(char *pids) {
  for (char *pid = strtok(pids, ","); pid && process_count < MOST_PROCESSES; pid = strtok(NULL, ","))
    processes[process_count++].pid = atoi(pid);
}

// Opens and closes the window; says whether the run is over.
static inline bool over(int64_t now) {
  if (!run.on && now >= run.start_ns + (int64_t)(plan.warm * 1e9)) {
    for (int i = 0; i < process_count; i++) processes[i].before = process_cpu_s(processes[i].pid);
    machine_cpu_s(&busy[0], &stolen[0]);
    own[0] = own_cpu_s();
    run.from_ns = now_ns();
    run.on = true;
  }
  if (!run.on || now < run.from_ns + (int64_t)(plan.window * 1e9)) return false;
  run.to_ns = now_ns();
  own[1] = own_cpu_s();
  for (int i = 0; i < process_count; i++) processes[i].after = process_cpu_s(processes[i].pid);
  machine_cpu_s(&busy[1], &stolen[1]);
  return true;
}

// One request on its way.
typedef struct {
  int64_t begun, last;
  int tokens, wanted;
} answer;

static inline void begin(answer *of) {
  of->begun = now_ns();
  of->last = of->tokens = 0;
}

static inline void arrived(answer *of, int tokens, int64_t now) {
  if (run.on) {
    observe(of->last ? &run.gap : &run.first, now - (of->last ? of->last : of->begun));
    run.tokens += (uint64_t)tokens;
  }
  of->last = now;
  of->tokens += tokens;
}

// Every engine here gives exactly as many tokens as were asked for; what had no event of its own came with another.
static inline void ended(answer *of, bool well, int64_t now) {
  if (!run.on) return;
  if (!well) {
    run.failed++;
    return;
  }
  run.done++;
  observe(&run.whole, now - of->begun);
  if (of->tokens < of->wanted) {
    run.tokens += (uint64_t)(of->wanted - of->tokens);
    run.merged += (uint64_t)(of->wanted - of->tokens);
  }
}

// The first answers have lengths by chance, or all would end in the same moment for ever.
static inline int first_length(void) {
  return plan.flight > 1 && plan.tokens > 8 && plan.rate == 0 ? 1 + rand() % plan.tokens : plan.tokens;
}

static inline void report(void) {
  double seconds = (double)(run.to_ns - run.from_ns) / 1e9;
  printf("{\"seconds\":%.4f,\"done\":%lu,\"failed\":%lu,", seconds, run.done, run.failed);
  printf("\"unsent\":%lu,\"tokens\":%lu,\"merged\":%lu,", run.unsent, run.tokens, run.merged);
  print_histogram("first_us", &run.first);
  print_histogram("gap_us", &run.gap);
  print_histogram("whole_us", &run.whole);
  printf("\"client_cpu_s\":%.4f,\"busy_s\":%.3f,\"stolen_s\":%.3f,\"cpu_s\":{", own[1] - own[0], busy[1] - busy[0],
         stolen[1] - stolen[0]);
  for (int i = 0; i < process_count; i++)
    printf("%s\"%d\":%.6f", i ? "," : "", processes[i].pid, processes[i].after - processes[i].before);
  printf("}}\n");
}

// The options that both generators have; `more` takes the others. Exits on nonsense.
static inline void read_options(int count, char **words, bool (*more)(const char *name, char *value)) {
  for (int i = 1; i + 1 < count; i += 2) {
    const char *name = words[i];
    char *value = words[i + 1];
    if (!strcmp(name, "--port")) plan.port = atoi(value);
    else if (!strcmp(name, "--flight")) plan.flight = atoi(value);
    else if (!strcmp(name, "--tokens")) plan.tokens = atoi(value);
    else if (!strcmp(name, "--warm")) plan.warm = atof(value);
    else if (!strcmp(name, "--window")) plan.window = atof(value);
    else if (!strcmp(name, "--rate")) plan.rate = atof(value);
    else if (!strcmp(name, "--pids")) add_processes(value);
    else if (!more(name, value)) {
      fprintf(stderr, "unknown option %s\n", name);
      exit(2);
    }
  }
  if (plan.flight < 1 || plan.flight > 8192 || plan.warm + plan.window > 120 || plan.tokens < 1) {
    fprintf(stderr, "--flight 1 to 8192, --tokens from 1, --warm + --window at most 120 s\n");
    exit(2);
  }
}

// When an open loop sends next: gaps between arrivals are exponential.
static inline int64_t next_arrival(int64_t last) {
  double chance = ((double)rand() + 1) / ((double)RAND_MAX + 2);
  return last + (int64_t)(-__builtin_log(chance) * 1e9 / plan.rate);
}

static inline uint8_t *read_file(const char *path, size_t *length) {
  FILE *file = fopen(path, "rb");
  uint8_t *bytes = malloc(1 << 20);
  if (!file || !bytes) {
    perror(path);
    exit(2);
  }
  *length = fread(bytes, 1, 1 << 20, file);
  fclose(file);
  return bytes;
}

// Where the body has eight X, it gets a number of its own for every request: no two prompts are the same.
static inline void stamp(uint8_t *body, size_t length) {
  static uint64_t count;
  char number[9];
  uint8_t *mark = memmem(body, length, "XXXXXXXX", 8);
  if (!mark) return;
  snprintf(number, sizeof number, "%08x", (uint32_t)(count++ * 2654435761u));
  memcpy(mark, number, 8);
}

#endif
