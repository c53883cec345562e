/* Reads many WebSocket connections at once and checks every frame: the benchmark's client.

   Compiled when a benchmark starts (fanout/reader.py), so that the client is not what is measured.
   Every frame is walked: header, length, the message's `op`, `ch`, `seq` and `prev`. A number that
   does not continue the one before counts as a gap, and a gap fails the run. Values of which only
   the newest counts (`bbo`) may jump ahead, never back. Latency is the wall clock at the read minus
   the message's `at`, or minus the moment at which its trade or update was due (`reader_due`).
   Pings are answered. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_BYTES (1 << 17)
#define HISTOGRAM 40000 /* buckets of 0.1 ms: up to four seconds; the last one is "longer" */
#define CHANNELS_MAX 48

typedef struct {
    int64_t deliveries, private_deliveries, bytes, gaps, told_gaps, malformed, closed, subscribed;
    int64_t pings, snapshots, reads, others;
    int64_t close_code, values, conflated;
    int64_t histogram[HISTOGRAM];
    char note[256];
} Stats;

typedef struct {
    int fd, used, open, paused;
    int channels;
    int64_t channel[CHANNELS_MAX], seq[CHANNELS_MAX];
    int private_channel[CHANNELS_MAX];
    uint8_t *rest; /* an incomplete frame */
    int rest_bytes;
    /* of a broker whose records span frames */
    uint8_t *record;
    int record_bytes;
} Peer;

enum { TRADE, VALUE, BOOK, KINDS };

/* When each trade or update of a played recording was due, in the order of its numbers. */
typedef struct {
    int64_t count, *number, *us;
} Due;

typedef struct {
    int epoll, count, room, broker;
    Due due[KINDS];
    int64_t due_shift_us;
    Peer *peers;
    uint8_t *buffer;
} Reader;

Reader *reader_new(int room, int broker) {
    Reader *r = calloc(1, sizeof *r);
    r->epoll = epoll_create1(EPOLL_CLOEXEC);
    r->room = room;
    r->broker = broker;
    r->peers = calloc(room, sizeof(Peer));
    r->buffer = malloc(BUFFER_BYTES + (1 << 17));
    return r;
}

void reader_free(Reader *r) {
    for (int i = 0; i < r->count; i++) {
        free(r->peers[i].rest);
        free(r->peers[i].record);
    }
    for (int i = 0; i < KINDS; i++) {
        free(r->due[i].number);
        free(r->due[i].us);
    }
    close(r->epoll);
    free(r->peers);
    free(r->buffer);
    free(r);
}

/* What is played was due then, in microseconds of the day; numbers ascend. */
void reader_due(Reader *r, int kind, int64_t count, const int64_t *number, const int64_t *us) {
    Due *d = &r->due[kind];
    d->count = count;
    d->number = malloc(count * sizeof(int64_t));
    d->us = malloc(count * sizeof(int64_t));
    memcpy(d->number, number, count * sizeof(int64_t));
    memcpy(d->us, us, count * sizeof(int64_t));
}

/* It is played later than planned by this much. */
void reader_shift(Reader *r, int64_t us) { r->due_shift_us = us; }

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)(t.tv_sec % 86400) * 1000000 + t.tv_nsec / 1000;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static const uint8_t *number(const uint8_t *at, const uint8_t *end, int64_t *value) {
    int64_t v = 0;
    const uint8_t *start = at;
    while (at < end && *at >= '0' && *at <= '9') v = v * 10 + (*at++ - '0');
    *value = v;
    return at == start ? NULL : at;
}

static const uint8_t *skip(const uint8_t *at, const uint8_t *end, const char *word) {
    size_t n = strlen(word);
    return at && (size_t)(end - at) >= n && !memcmp(at, word, n) ? at + n : NULL;
}

static void note(Stats *s, const uint8_t *at, int size) {
    if (!s->note[0]) {
        int n = size < 255 ? size : 255;
        memcpy(s->note, at, n);
        s->note[n] = 0;
    }
}

static int place(Peer *p, int64_t channel) {
    for (int i = 0; i < p->channels; i++)
        if (p->channel[i] == channel) return i;
    if (p->channels == CHANNELS_MAX) return -1;
    p->channel[p->channels] = channel;
    p->seq[p->channels] = -1;
    return p->channels++;
}

/* Two digits, three times two with separators, six digits: "HH:MM:SS.ffffff" */
static int64_t time_us(const uint8_t *t) {
#define D(i) (t[i] - '0')
    int64_t s = (D(0) * 10 + D(1)) * 3600 + (D(3) * 10 + D(4)) * 60 + D(6) * 10 + D(7);
    int64_t us = 0;
    for (int i = 9; i < 15; i++) us = us * 10 + D(i);
    return s * 1000000 + us;
}

/* The newest `"name":` in the message's last bytes; its number. */
static int64_t last_number(const uint8_t *at, const uint8_t *end, const char *name) {
    const uint8_t *from = end - at > 160 ? end - 160 : at, *c;
    int64_t value;
    c = memmem(from, end - from, name, strlen(name));
    return c && number(c + strlen(name), end, &value) ? value : -1;
}

static int kind_of(const uint8_t *data, const uint8_t *end) {
    if (skip(data, end, ",\"data\":{\"trade_id\":")) return TRADE;
    if (skip(data, end, ",\"data\":{\"bid\":")) return VALUE;
    return skip(data, end, ",\"data\":{\"bids\":") ? BOOK : -1;
}

static void record(Stats *s, int64_t age) {
    if (age < -43200000000LL) age += 86400000000LL;
    int64_t bucket = age < 0 ? 0 : age / 100;
    s->histogram[bucket < HISTOGRAM ? bucket : HISTOGRAM - 1]++;
}

/* What was recorded under this number, and how late it is; a number that was not is malformed. */
static void late(Reader *r, Stats *s, const uint8_t *at, const uint8_t *data, const uint8_t *end,
                 int64_t now) {
    int kind = kind_of(data, end);
    int64_t wanted = -1;
    if (kind == TRADE)
        number(data + strlen(",\"data\":{\"trade_id\":"), end, &wanted);
    else if (kind >= 0)
        wanted = last_number(at, end, "\"update_id\":");
    if (kind >= 0) {
        Due *d = &r->due[kind];
        int64_t low = 0, high = d->count;
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (d->number[middle] < wanted)
                low = middle + 1;
            else
                high = middle;
        }
        if (low < d->count && d->number[low] == wanted) {
            record(s, now - d->us[low] - r->due_shift_us);
            return;
        }
    }
    s->malformed++;
    note(s, at, (int)(end - at));
}

static void message(Reader *r, Peer *p, Stats *s, const uint8_t *at, int size, int64_t now) {
    const uint8_t *end = at + size, *op = skip(at, end, "{\"op\":\""), *c;
    int64_t channel, seq, prev;
    if (!op) {
        s->malformed++;
        note(s, at, size);
        return;
    }
    if ((c = skip(op, end, "delta\",\"ch\":"))) {
        c = number(c, end, &channel);
        c = c ? skip(c, end, ",\"seq\":") : NULL;
        c = c ? number(c, end, &seq) : NULL;
        c = c ? skip(c, end, ",\"prev\":") : NULL;
        c = c ? number(c, end, &prev) : NULL;
        int i = c ? place(p, channel) : -1;
        if (i < 0) {
            s->malformed++;
            note(s, at, size);
            return;
        }
        if (prev + 1 != seq || (p->seq[i] >= 0 && p->seq[i] != prev)) {
            s->gaps++;
            note(s, at, size);
        }
        p->seq[i] = seq;
        if (skip(c, end, ",\"hash\":")) {
            s->private_deliveries++;
            return;
        }
        s->deliveries++;
        if (r->due[TRADE].count) {
            late(r, s, at, c, end, now);
            return;
        }
        /* … "at":"2024-08-08T23:54:00.123456Z"}} */
        if (size > 40 && end[-1] == '}' && end[-4] == 'Z') {
            record(s, now - time_us(end - 19));
        } else {
            s->malformed++;
            note(s, at, size);
        }
        return;
    }
    if ((c = skip(op, end, "snap\",\"ch\":"))) {
        c = number(c, end, &channel);
        c = c ? skip(c, end, ",\"seq\":") : NULL;
        c = c ? number(c, end, &seq) : NULL;
        int i = c ? place(p, channel) : -1;
        if (c && r->due[TRADE].count && i >= 0 && p->seq[i] >= 0 && kind_of(c, end) == VALUE) {
            if (seq <= p->seq[i]) {
                s->gaps++;
                note(s, at, size);
            }
            s->conflated += seq - p->seq[i] - 1;
            s->deliveries++;
            s->values++;
            late(r, s, at, c, end, now);
        } else {
            s->snapshots++;
        }
        if (i >= 0) p->seq[i] = seq;
    } else if ((c = skip(op, end, "gap\",\"ch\":"))) {
        c = number(c, end, &channel);
        c = c ? skip(c, end, ",\"seq\":") : NULL;
        c = c ? number(c, end, &seq) : NULL;
        int64_t from = -1, to = -1;
        c = c ? skip(c, end, ",\"from\":") : NULL;
        c = c ? number(c, end, &from) : NULL;
        c = c ? skip(c, end, ",\"to\":") : NULL;
        c = c ? number(c, end, &to) : NULL;
        int i = c ? place(p, channel) : -1;
        s->told_gaps++;
        /* A told gap has to begin where the reader is and to say where to go on. */
        if (i < 0 || to != seq || (p->seq[i] >= 0 && from != p->seq[i] + 1)) {
            s->malformed++;
            note(s, at, size);
        }
        if (i >= 0) p->seq[i] = to;
    } else if (skip(op, end, "subbed\"")) {
        s->subscribed++;
        if (memmem(at, size, "\"error\"", 7)) {
            s->malformed++;
            note(s, at, size);
        }
    } else if (skip(op, end, "error\"")) {
        s->malformed++;
        note(s, at, size);
    } else {
        s->others++;
    }
}

/* "MSG subject sid size\r\n" payload "\r\n", one after the other, frames cut anywhere. */
static void records(Reader *r, Peer *p, Stats *s, const uint8_t *data, int size, int64_t now) {
    if (!p->record) p->record = malloc(1 << 18);
    memcpy(p->record + p->record_bytes, data, size);
    p->record_bytes += size;
    uint8_t *at = p->record, *end = at + p->record_bytes;
    while (at < end) {
        uint8_t *line = memchr(at, '\n', end - at);
        if (!line) break;
        if (end - at > 4 && !memcmp(at, "MSG ", 4)) {
            uint8_t *digits = line - 1;
            while (digits > at && digits[-1] != ' ') digits--;
            int64_t length;
            if (!number(digits, line, &length) || end - line - 1 < length + 2) break;
            message(r, p, s, line + 1, (int)length, now);
            at = line + 1 + length + 2;
        } else {
            if (end - at >= 4 && !memcmp(at, "PING", 4)) {
                uint8_t pong[12] = {0x82, 0x86, 0, 0, 0, 0, 'P', 'O', 'N', 'G', '\r', '\n'};
                send(p->fd, pong, 12, MSG_NOSIGNAL | MSG_DONTWAIT);
                s->pings++;
            } else if (*at == '-') {
                s->malformed++;
                note(s, at, (int)(line - at));
            } else if (!memcmp(at, "PONG", 4)) {
                s->subscribed++;
            }
            at = line + 1;
        }
    }
    p->record_bytes = (int)(end - at);
    memmove(p->record, at, p->record_bytes);
}

static void gone(Reader *r, Peer *p, Stats *s) {
    if (p->open) {
        epoll_ctl(r->epoll, EPOLL_CTL_DEL, p->fd, NULL);
        p->open = 0;
        s->closed++;
    }
}

/* Walks the frames in `data`; returns the number of bytes that were whole frames. */
static int frames(Reader *r, Peer *p, Stats *s, const uint8_t *data, int size) {
    int64_t now = now_us();
    int at = 0;
    while (size - at >= 2) {
        const uint8_t *f = data + at;
        int head = 2;
        int64_t length = f[1] & 0x7f;
        if (f[1] & 0x80) s->malformed++;
        if (length == 126) {
            if (size - at < 4) break;
            length = (f[2] << 8) | f[3];
            head = 4;
        } else if (length == 127) {
            if (size - at < 10) break;
            length = 0;
            for (int i = 2; i < 10; i++) length = (length << 8) | f[i];
            head = 10;
        }
        if (size - at < head + length) break;
        const uint8_t *payload = f + head;
        switch (f[0]) {
        case 0x81:
        case 0x82:
            if (r->broker)
                records(r, p, s, payload, (int)length, now);
            else
                message(r, p, s, payload, (int)length, now);
            break;
        case 0x89: {
            uint8_t pong[6 + 125] = {0x8a, (uint8_t)(0x80 | length)};
            memcpy(pong + 6, payload, length);
            send(p->fd, pong, 6 + length, MSG_NOSIGNAL | MSG_DONTWAIT);
            s->pings++;
            break;
        }
        case 0x8a:
            break;
        case 0x88:
            if (length >= 2) s->close_code = (payload[0] << 8) | payload[1];
            gone(r, p, s);
            return size;
        default:
            s->malformed++;
            note(s, (const uint8_t *)"a frame of no known kind", 24);
        }
        at += head + (int)length;
    }
    return at;
}

/* Room for the start of a frame that is not complete yet. */
static void keep(Peer *p, const uint8_t *data, int size) {
    if (size) {
        p->rest = realloc(p->rest, size);
        memcpy(p->rest, data, size);
    }
    p->rest_bytes = size;
}

int reader_add(Reader *r, int fd, const uint8_t *first, int size, Stats *s) {
    if (r->count == r->room) return -1;
    Peer *p = &r->peers[r->count];
    p->fd = fd;
    p->open = 1;
    int done = frames(r, p, s, first, size);
    keep(p, first + done, size - done);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = r->count};
    epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &event);
    return r->count++;
}

/* Stop reading one connection, or go on. */
void reader_pause(Reader *r, int index, int paused) {
    Peer *p = &r->peers[index];
    if (!p->open || p->paused == paused) return;
    p->paused = paused;
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
    epoll_ctl(r->epoll, paused ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, p->fd, &event);
}

/* Forget a connection that is about to be closed. */
void reader_drop(Reader *r, int index) {
    Peer *p = &r->peers[index];
    if (p->open) {
        epoll_ctl(r->epoll, EPOLL_CTL_DEL, p->fd, NULL);
        p->open = 0;
    }
}

int reader_open(Reader *r, int index) { return r->peers[index].open; }

int64_t reader_newest(Reader *r, int index) {
    Peer *p = &r->peers[index];
    return p->channels ? p->seq[0] : -1;
}

/* Read for so long; or until `subscribed` reaches `enough`, where that is above 0. */
void reader_run(Reader *r, double seconds, int64_t enough, Stats *s) {
    struct epoll_event events[512];
    double end = now_s() + seconds;
    for (;;) {
        double left = end - now_s();
        if (left <= 0 || (enough > 0 && s->subscribed >= enough)) return;
        int timeout_ms = left > 0.05 ? 50 : (int)(left * 1000) + 1;
        int n = epoll_wait(r->epoll, events, 512, timeout_ms);
        for (int e = 0; e < n; e++) {
            Peer *p = &r->peers[events[e].data.u32];
            if (!p->open) continue;
            if (p->rest_bytes) memcpy(r->buffer, p->rest, p->rest_bytes);
            ssize_t got = recv(p->fd, r->buffer + p->rest_bytes, BUFFER_BYTES, MSG_DONTWAIT);
            s->reads++;
            if (got <= 0) {
                if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
                gone(r, p, s);
                continue;
            }
            s->bytes += got;
            int size = p->rest_bytes + (int)got;
            int done = frames(r, p, s, r->buffer, size);
            if (size - done > (1 << 17)) {
                s->malformed++;
                gone(r, p, s);
                continue;
            }
            keep(p, r->buffer + done, size - done);
        }
    }
}
