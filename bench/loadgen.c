/* A client that costs next to nothing: a closed loop of requests on N connections, over one thread and epoll.

   Prints one JSON line: requests and chunks a second, percentiles of latency and of time to the first chunk, and the one-way delay of
   chunks that carry "ts":N (CLOCK_MONOTONIC nanoseconds of the sender, same machine). Latency and delay are in microseconds.

   usage: loadgen PORT PATH CONNECTIONS SECONDS BODY_FILE [RAMP_US]   (RAMP_US: microseconds between the starts of two connections) */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLES_MAX = 4000000, HEAD_MAX = 16384, LINE_MAX_ = 4096 };
enum { HEAD, SIZE, DATA, DATA_END, TRAILER, LENGTH, CLOSE };

typedef struct {
  int fd, phase, chunked, status, first_seen, head_len, line_len;
  long sent, left;
  long long started;
  char head[HEAD_MAX], line[LINE_MAX_];
} Conn;

typedef struct { float *values; long n; } Samples;
static Samples latency, first, delay;
static long requests, chunks, errors, bad_status;
static char *message;
static long message_len;
static int poller;
static struct sockaddr_in to = {.sin_family = AF_INET};

static long long now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sample(Samples *s, double us) {
  if (!s->values) s->values = malloc(SAMPLES_MAX * sizeof(float));
  if (s->n < SAMPLES_MAX) s->values[s->n++] = us;
}

static int up(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void show(const char *name, Samples *s) {
  qsort(s->values, s->n, sizeof(float), up);
  if (s->n)
    printf(",\"%s_p50\":%.1f,\"%s_p99\":%.1f", name, s->values[s->n / 2], name, s->values[(long)(s->n * 0.99)]);
}

static void send_some(Conn *c) {
  while (c->sent < message_len) {
    ssize_t n = write(c->fd, message + c->sent, message_len - c->sent);
    if (n < 0) break;
    c->sent += n;
  }
  struct epoll_event e = {.events = EPOLLIN | (c->sent < message_len ? EPOLLOUT : 0), .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void begin(Conn *c) {
  c->started = now_ns(), c->sent = 0, c->phase = HEAD, c->head_len = c->first_seen = c->line_len = 0;
  while (c->sent < message_len) {
    ssize_t n = write(c->fd, message + c->sent, message_len - c->sent);
    if (n < 0) break;
    c->sent += n;
  }
  if (c->sent < message_len) send_some(c);
}

static void open_(Conn *c) {
  int on = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(c->fd, (void *)&to, sizeof to)) { perror("connect"); exit(1); }
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
  begin(c);
}

static void ended(Conn *c) {
  sample(&latency, (now_ns() - c->started) / 1e3);
  requests++;
  if (c->status != 200) bad_status++;
  begin(c);
}

static void failed(Conn *c) {
  errors++;
  close(c->fd);
  open_(c);
}

/* Look at body bytes line by line for stamps. */
static void body(Conn *c, const char *data, long n, long long now) {
  if (!c->first_seen && n) c->first_seen = 1, sample(&first, (now - c->started) / 1e3);
  while (n > 0) {
    const char *end = memchr(data, '\n', n);
    long part = end ? end - data : n;
    long room = LINE_MAX_ - 1 - c->line_len, copy = part < room ? part : room;
    memcpy(c->line + c->line_len, data, copy);
    c->line_len += copy;
    if (!end) return;
    c->line[c->line_len] = 0;
    char *ts = strstr(c->line, "\"ts\":");
    if (ts) chunks++, sample(&delay, (now - atoll(ts + 5)) / 1e3);
    c->line_len = 0, data += part + 1, n -= part + 1;
  }
}

static int take(Conn *c, const char *data, long n, long long now) { /* 0: connection is to be given up */
  while (n > 0) {
    switch (c->phase) {
    case HEAD: {
      long room = HEAD_MAX - 1 - c->head_len, part = n < room ? n : room;
      memcpy(c->head + c->head_len, data, part);
      c->head[c->head_len + part] = 0;
      char *end = strstr(c->head + (c->head_len > 3 ? c->head_len - 3 : 0), "\r\n\r\n");
      if (!end) {
        c->head_len += part, data += part, n -= part;
        if (part == room) return 0;
        break;
      }
      long used = end + 4 - (c->head + c->head_len);
      data += used, n -= used, *end = 0;
      c->status = atoi(c->head + 9);
      char *length = strcasestr(c->head, "\r\ncontent-length:");
      c->chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != 0;
      c->left = length ? atol(length + 17) : 0;
      c->phase = c->chunked ? SIZE : length ? LENGTH : CLOSE;
      c->head_len = 0;
      if (c->phase == LENGTH && c->left == 0) { ended(c); return 1; }
      break;
    }
    case LENGTH: {
      long part = n < c->left ? n : c->left;
      body(c, data, part, now);
      c->left -= part, data += part, n -= part;
      if (c->left == 0) { ended(c); return 1; }
      break;
    }
    case CLOSE: body(c, data, n, now); return 1;
    case SIZE: {
      char ch = *data++;
      n--;
      if (ch == '\n') {
        c->head[c->head_len] = 0;
        c->left = strtol(c->head, NULL, 16), c->head_len = 0;
        c->phase = c->left ? DATA : TRAILER;
      } else if (c->head_len < 64) c->head[c->head_len++] = ch;
      break;
    }
    case DATA: {
      long part = n < c->left ? n : c->left;
      body(c, data, part, now);
      c->left -= part, data += part, n -= part;
      if (c->left == 0) c->phase = DATA_END;
      break;
    }
    case DATA_END:
      if (*data == '\n') c->phase = SIZE;
      data++, n--;
      break;
    case TRAILER:
      if (*data == '\n') { ended(c); return 1; }
      data++, n--;
      break;
    }
  }
  return 1;
}

int main(int argc, char **argv) {
  if (argc < 6) return fprintf(stderr, "usage: loadgen PORT PATH CONNECTIONS SECONDS BODY_FILE [RAMP_US]\n"), 2;
  to.sin_port = htons(atoi(argv[1])), to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int conns_n = atoi(argv[3]);
  double seconds = atof(argv[4]);
  FILE *f = fopen(argv[5], "rb");
  if (!f) return perror(argv[5]), 1;
  fseek(f, 0, SEEK_END);
  long body_len = ftell(f);
  rewind(f);
  message = malloc(body_len + 512);
  message_len = sprintf(message, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %ld\r\n\r\n", argv[2], body_len);
  message_len += fread(message + message_len, 1, body_len, f);
  long ramp_us = argc > 6 ? atol(argv[6]) : 0;
  poller = epoll_create1(0);
  Conn *conns = calloc(conns_n, sizeof(Conn));
  struct epoll_event events[512];
  static char buffer[1 << 18];
  long long start = now_ns(), stop = start + (long long)(seconds * 1e9);
  int opened = 0;
  while (now_ns() < stop) {
    while (opened < conns_n && now_ns() >= start + opened * ramp_us * 1000LL) open_(&conns[opened++]);
    int n = epoll_wait(poller, events, 512, opened < conns_n ? 1 : 20);
    long long now = now_ns();
    for (int i = 0; i < n; i++) {
      Conn *c = events[i].data.ptr;
      if (events[i].events & EPOLLOUT) send_some(c);
      if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
      ssize_t got = read(c->fd, buffer, sizeof buffer);
      if (got > 0) {
        if (!take(c, buffer, got, now)) failed(c);
      } else if (got == 0 && c->phase == CLOSE) {
        close(c->fd);
        requests++, bad_status += c->status != 200;
        open_(c);
      } else if (got == 0 || errno != EAGAIN) failed(c);
    }
  }
  double took = (now_ns() - start) / 1e9;
  printf("{\"rps\":%.1f,\"requests\":%ld,\"chunks_s\":%.1f,\"chunks\":%ld,\"errors\":%ld,\"not_200\":%ld", requests / took, requests, chunks / took, chunks, errors, bad_status);
  show("latency", &latency), show("ttfc", &first), show("delay", &delay);
  puts("}");
  return 0;
}
