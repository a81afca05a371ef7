/* A node that costs next to nothing, so that a router before it is all that is measured.

   One thread, epoll, HTTP/1.1 keep-alive. Answers POST to any path: with "stream":false one JSON object of about 0.5 KB, else a
   stream of chunks. How many and how fast is in the request's own options, because every router passes the body on:
   "num_predict":N chunks, "delay_us":D microseconds apart (0: at once). Native paths stream NDJSON, /v1 paths SSE. Each chunk carries
   the CLOCK_MONOTONIC nanosecond at which it was written, as "ts":N, so that a client on the same machine can tell its delay.
   GET /stats tells the streams now open and the requests answered.

   usage: backend PORT */
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

enum { CONNS_MAX = 16384, HEAD_MAX = 65536, PEEK_MAX = 8192, OUT_MAX = 1 << 20 };

typedef struct {
  int fd, open, heap_at, armed;
  char *head;                     /* request head, and the first bytes of its body */
  int head_len, in_body;
  long body_left, peeked;
  char peek[PEEK_MAX + 1];
  char method, sse, streaming;
  long chunks_left, delay_ns;
  long long due;
  char *out;
  int out_len, out_at;
} Conn;

static Conn conns[CONNS_MAX];
static Conn *heap[CONNS_MAX];
static int heap_len, poller, live;
static long answered;

static long long now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void swap(int a, int b) {
  Conn *c = heap[a];
  heap[a] = heap[b], heap[b] = c;
  heap[a]->heap_at = a, heap[b]->heap_at = b;
}

static void sift(int i) {
  while (i > 0 && heap[i]->due < heap[(i - 1) / 2]->due) swap(i, (i - 1) / 2), i = (i - 1) / 2;
  for (;;) {
    int m = i, l = 2 * i + 1, r = l + 1;
    if (l < heap_len && heap[l]->due < heap[m]->due) m = l;
    if (r < heap_len && heap[r]->due < heap[m]->due) m = r;
    if (m == i) return;
    swap(i, m), i = m;
  }
}

static void schedule(Conn *c, long long due) {
  c->due = due;
  if (c->heap_at < 0) c->heap_at = heap_len, heap[heap_len++] = c;
  sift(c->heap_at);
}

static void unschedule(Conn *c) {
  if (c->heap_at < 0) return;
  int i = c->heap_at;
  heap[i] = heap[--heap_len], heap[i]->heap_at = i, c->heap_at = -1;
  if (i < heap_len) sift(i);
}

static void drop(Conn *c) {
  if (c->streaming) live--;
  unschedule(c);
  close(c->fd);
  c->open = c->streaming = 0;
}

static void flush(Conn *c) {
  while (c->out_at < c->out_len) {
    ssize_t n = write(c->fd, c->out + c->out_at, c->out_len - c->out_at);
    if (n <= 0) {
      if (errno != EAGAIN) drop(c);
      break;
    }
    c->out_at += n;
  }
  if (c->out_at == c->out_len) c->out_at = c->out_len = 0;
  if (!c->open) return;
  struct epoll_event e = {.events = EPOLLIN | (c->out_len ? EPOLLOUT : 0), .data.ptr = c};
  if (c->armed != (c->out_len > 0)) c->armed = c->out_len > 0, epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void put(Conn *c, const char *data, int len) {
  if (c->out_at && c->out_len + len > OUT_MAX) {
    memmove(c->out, c->out + c->out_at, c->out_len - c->out_at);
    c->out_len -= c->out_at, c->out_at = 0;
  }
  if (c->out_len + len > OUT_MAX) return; /* a reader that never reads loses chunks, and the count shows it */
  memcpy(c->out + c->out_len, data, len);
  c->out_len += len;
}

static void whole(Conn *c, const char *type, const char *body) {
  char text[4096];
  int n = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", type, strlen(body), body);
  put(c, text, n);
}

static void chunk(Conn *c, const char *data, int len) {
  char head[16];
  put(c, head, snprintf(head, sizeof head, "%x\r\n", len));
  put(c, data, len);
  put(c, "\r\n", 2);
}

static const char *const NATIVE = "{\"model\":\"bench:1b\",\"created_at\":\"2026-01-01T00:00:00.000000000Z\",\"message\":{\"role\":\"assistant\",\"content\":\" wo\"},\"ts\":%lld,\"done\":false}\n";
static const char *const NATIVE_END = "{\"model\":\"bench:1b\",\"created_at\":\"2026-01-01T00:00:00.000000000Z\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":1000000,\"load_duration\":1000,\"prompt_eval_count\":10,\"prompt_eval_duration\":1000,\"eval_count\":%ld,\"eval_duration\":1000000}\n";
static const char *const OPENAI = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench:1b\",\"ts\":%lld,\"choices\":[{\"index\":0,\"delta\":{\"content\":\" wo\"}}]}\n\n";
static const char *const OPENAI_END = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench:1b\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

static long total_chunks(Conn *c);

static int step(Conn *c) { /* write one chunk; 0 when the stream has ended */
  char text[1024];
  int n;
  if (c->chunks_left > 0) {
    n = snprintf(text, sizeof text, c->sse ? OPENAI : NATIVE, now_ns());
    chunk(c, text, n);
    c->chunks_left--;
    return 1;
  }
  n = snprintf(text, sizeof text, c->sse ? OPENAI_END : NATIVE_END, total_chunks(c));
  chunk(c, text, n);
  put(c, "0\r\n\r\n", 5);
  c->streaming = 0, live--, answered++;
  unschedule(c);
  return 0;
}

static long option(const char *text, const char *name, long otherwise) {
  const char *at = strstr(text, name);
  if (!at) return otherwise;
  at += strlen(name);
  while (*at == '"' || *at == ':' || *at == ' ') at++;
  return atol(at);
}

static long total_chunks(Conn *c) { return option(c->peek, "num_predict", 1); }

static int says(const char *text, const char *key, const char *value) {
  const char *at = strstr(text, key);
  if (!at) return 0;
  at += strlen(key);
  while (*at == ':' || *at == ' ') at++;
  return !strncmp(at, value, strlen(value));
}

static void answer(Conn *c) {
  c->peek[c->peeked] = 0;
  if (!strncmp(c->head, "GET /stats", 10)) {
    char text[128];
    snprintf(text, sizeof text, "{\"live\":%d,\"answered\":%ld}", live, answered);
    whole(c, "application/json", text);
    return;
  }
  if (!strncmp(c->head, "GET /api/version", 16)) { whole(c, "application/json", "{\"version\":\"0.12.0\"}"); return; }
  if (!strncmp(c->head, "GET /api/tags", 13)) { whole(c, "application/json", "{\"models\":[{\"name\":\"bench:1b\",\"model\":\"bench:1b\",\"size\":1000000000,\"digest\":\"0123456789abcdef\",\"modified_at\":\"2026-01-01T00:00:00Z\",\"details\":{}}]}"); return; }
  if (c->method == 'G' || c->method == 'H') { whole(c, "text/plain", "Ollama is running"); return; }
  c->sse = strstr(c->head, " /v1/") != 0;
  int streams = c->sse ? says(c->peek, "\"stream\"", "true") : !says(c->peek, "\"stream\"", "false");
  if (!streams) {
    answered++;
    if (c->sse)
      whole(c, "application/json", "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"bench:1b\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog, and then it does so again, because a benchmark wants an answer of about half a kilobyte, which is what this sentence is for.\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":40,\"total_tokens\":50}}");
    else
      whole(c, "application/json; charset=utf-8", "{\"model\":\"bench:1b\",\"created_at\":\"2026-01-01T00:00:00.000000000Z\",\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog, and then it does so again, because a benchmark wants an answer of about half a kilobyte, which is what this sentence is for.\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":1000000,\"load_duration\":1000,\"prompt_eval_count\":10,\"prompt_eval_duration\":1000,\"eval_count\":40,\"eval_duration\":1000000}");
    return;
  }
  c->streaming = 1, live++;
  c->chunks_left = option(c->peek, "num_predict", 1);
  c->delay_ns = option(c->peek, "delay_us", 0) * 1000;
  char text[256];
  put(c, text, snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n", c->sse ? "text/event-stream" : "application/x-ndjson"));
  if (c->delay_ns == 0) {
    while (c->out_len < OUT_MAX - 1024 && step(c)) {}
    if (c->streaming) schedule(c, now_ns());
  } else {
    step(c);
    schedule(c, now_ns() + c->delay_ns);
  }
}

static void take(Conn *c, const char *data, long n) {
  while (n > 0 && c->open) {
    if (!c->in_body) {
      long room = HEAD_MAX - c->head_len - 1, part = n < room ? n : room;
      memcpy(c->head + c->head_len, data, part);
      c->head[c->head_len + part] = 0;
      char *end = strstr(c->head + (c->head_len > 3 ? c->head_len - 3 : 0), "\r\n\r\n");
      if (!end) {
        c->head_len += part, data += part, n -= part;
        if (part == room) { drop(c); return; }
        continue;
      }
      long used = end + 4 - (c->head + c->head_len);
      data += used, n -= used;
      *end = 0;
      c->method = c->head[0];
      char *length = strcasestr(c->head, "\r\ncontent-length:");
      c->body_left = length ? atol(length + 17) : 0;
      c->in_body = 1, c->peeked = 0, c->head_len = 0;
    }
    long part = n < c->body_left ? n : c->body_left;
    long peek = part < PEEK_MAX - c->peeked ? part : PEEK_MAX - c->peeked;
    memcpy(c->peek + c->peeked, data, peek);
    c->peeked += peek, c->body_left -= part, data += part, n -= part;
    if (c->body_left == 0) c->in_body = 0, answer(c);
  }
}

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: backend PORT\n"), 2;
  int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (void *)&at, sizeof at) || listen(listener, 4096)) return perror("listen"), 1;
  fcntl(listener, F_SETFL, O_NONBLOCK);
  poller = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
  static char buffer[1 << 18];
  for (;;) {
    int wait = -1;
    if (heap_len) {
      long long left = heap[0]->due - now_ns();
      wait = left <= 0 ? 0 : (int)((left + 999999) / 1000000);
    }
    int n = epoll_wait(poller, events, 512, wait);
    for (int i = 0; i < n; i++) {
      Conn *c = events[i].data.ptr;
      if (!c) {
        int fd;
        while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
          int slot = 0;
          while (slot < CONNS_MAX && conns[slot].open) slot++;
          if (slot == CONNS_MAX) { close(fd); continue; }
          c = &conns[slot];
          if (!c->head) c->head = malloc(HEAD_MAX), c->out = malloc(OUT_MAX);
          c->fd = fd, c->open = 1, c->heap_at = -1, c->armed = c->head_len = c->in_body = c->out_len = c->out_at = c->streaming = 0;
          setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
          e.events = EPOLLIN, e.data.ptr = c;
          epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
        }
        continue;
      }
      if (!c->open) continue;
      if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t got = read(c->fd, buffer, sizeof buffer);
        if (got <= 0) {
          if (got == 0 || errno != EAGAIN) { drop(c); continue; }
        } else take(c, buffer, got);
      }
      if (c->open && c->out_len) flush(c);
      else if (c->open && (events[i].events & EPOLLOUT)) flush(c);
    }
    long long now = now_ns();
    while (heap_len && heap[0]->due <= now) {
      Conn *c = heap[0];
      if (c->delay_ns == 0) {
        while (c->out_len < OUT_MAX - 1024 && step(c)) {}
        if (c->streaming) schedule(c, now + 200000);
      } else if (step(c)) schedule(c, c->due + c->delay_ns);
      if (c->open) flush(c);
    }
  }
}
