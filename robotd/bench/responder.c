// Answers servo requests on a pseudo-terminal from memory, at once or when a wire would have.
//
//   responder MASTER_FD TEACHER_FD x|s
//
// A request seen for the first time goes to the teacher (the servo emulator, in the parent) over a
// seqpacket socket; its answer is kept and given again, byte for byte, to whoever sends the same
// request. Requests that change servos always go to the teacher and empty the memory, except sync
// writes: they have no answer and are only counted. So the cost of an answer is the same small one
// for every client, and is not the emulator's.
//
// With wire time, request and answer take theirs one after the other, a wire that is still busy is
// waited for, and the client gets the answer as a whole when its last byte is in (adapters pass on
// blocks). The servos' return delay is taken as 0, as arms are configured.
//
// Messages from the teacher: 'B' + u32 nanoseconds per byte (0: no wire time); 'S' asks for the
// counters; 'R' + the answer to the request asked last.
// Messages to the teacher: 'R' + request; 'S' + six u64 counters. Ends with the teacher's socket.

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 8192, ENTRIES = 512, REQUEST = 320, ANSWER = 2048, PRIORITY = 40 };

struct entry {
    uint64_t hash;
    uint16_t request_size, answer_size;
    uint8_t request[REQUEST], answer[ANSWER];
};

static struct entry table[ENTRIES];
static int entries;
static int master, teacher, dynamixel;
static uint64_t byte_ns, bus_free_ns;
static uint64_t requests, asked, request_bytes, answer_bytes, junk;
static int realtime;

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + at.tv_nsec;
}

static void sleep_until(uint64_t when_ns) {
    struct timespec at = {when_ns / 1000000000u, when_ns % 1000000000u};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {}
}

static uint64_t fnv1a(const uint8_t *data, int size) {
    uint64_t hash = 14695981039346656037u;
    for (int i = 0; i < size; i++) hash = (hash ^ data[i]) * 1099511628211u;
    return hash;
}

static void put(const uint8_t *data, int size) {
    while (size > 0) {
        ssize_t sent = write(master, data, size);
        if (sent < 0 && errno != EINTR && errno != EAGAIN) return;
        if (sent > 0) data += sent, size -= sent;
    }
}

static void deliver(const uint8_t *answer, int size) {
    answer_bytes += size;
    if (byte_ns && size) {
        bus_free_ns += size * byte_ns;
        sleep_until(bus_free_ns);
    }
    put(answer, size);
}

static void command(const uint8_t *data, ssize_t size) {
    if (data[0] == 'B' && size == 5) {
        uint32_t value;
        memcpy(&value, data + 1, 4);
        byte_ns = value;
    } else if (data[0] == 'S') {
        uint8_t reply[49] = {'S'};
        uint64_t values[6] = {requests, asked, request_bytes, answer_bytes, junk, realtime};
        memcpy(reply + 1, values, sizeof values);
        send(teacher, reply, sizeof reply, MSG_NOSIGNAL);
    }
}

static int ask(const uint8_t *request, int size, uint8_t *answer) {
    uint8_t message[ANSWER + 1] = {'R'};
    memcpy(message + 1, request, size);
    if (send(teacher, message, size + 1, MSG_NOSIGNAL) < 0) exit(0);
    asked++;
    for (;;) {
        ssize_t got = recv(teacher, message, sizeof message, 0);
        if (got <= 0) exit(0);
        if (message[0] == 'R') {
            memcpy(answer, message + 1, got - 1);
            return got - 1;
        }
        command(message, got);
    }
}

static int repeatable(uint8_t instruction) {  // the same answer again: ping and every kind of read
    return instruction == 0x01 || instruction == 0x02 || instruction == 0x82 ||
           instruction == 0x8A || instruction == 0x92 || instruction == 0x9A;
}

static void serve(const uint8_t *request, int size) {
    uint8_t instruction = request[dynamixel ? 7 : 4];
    requests++;
    request_bytes += size;
    uint64_t now = now_ns();
    if (bus_free_ns < now) bus_free_ns = now;
    bus_free_ns += size * byte_ns;
    if (instruction == 0x83) return;
    uint64_t hash = fnv1a(request, size);
    for (int i = 0; i < entries; i++) {
        struct entry *e = &table[i];
        if (e->hash == hash && e->request_size == size && !memcmp(e->request, request, size)) {
            deliver(e->answer, e->answer_size);
            return;
        }
    }
    static uint8_t answer[ANSWER + 1];
    int got = ask(request, size, answer);
    if (!repeatable(instruction)) {
        entries = 0;
    } else if (size <= REQUEST && got > 0) {
        struct entry *e = &table[entries < ENTRIES ? entries++ : ENTRIES - 1];
        e->hash = hash, e->request_size = size, e->answer_size = got;
        memcpy(e->request, request, size);
        memcpy(e->answer, answer, got);
    }
    deliver(answer, got);
}

// Size of the packet at the start of the buffer; 0: incomplete, -1: no packet starts here.
static int packet_size(const uint8_t *data, int filled) {
    static const uint8_t header[4] = {0xFF, 0xFF, 0xFD, 0x00};
    int marks = dynamixel ? 4 : 2, smallest = dynamixel ? 10 : 6;
    for (int i = 0; i < marks && i < filled; i++)
        if (data[i] != header[i]) return -1;
    if (filled < smallest) return 0;
    if (!dynamixel && data[2] == 0xFF) return -1;
    int size = dynamixel ? 7 + (data[5] | data[6] << 8) : 4 + data[3];
    if (size < smallest || size > BUFFER) return -1;
    return size <= filled ? size : 0;
}

static void take(void) {
    static uint8_t buffer[BUFFER];
    static int filled;
    ssize_t got = read(master, buffer + filled, BUFFER - filled);
    if (got <= 0) {
        if (got == 0 || errno == EIO) usleep(1000);  // nobody has the other end open
        return;
    }
    filled += got;
    int at = 0;
    while (at < filled) {
        int size = packet_size(buffer + at, filled - at);
        if (size == 0) break;
        if (size > 0) serve(buffer + at, size);
        else junk++;
        at += size > 0 ? size : 1;
    }
    memmove(buffer, buffer + at, filled - at);
    filled -= at;
    if (filled == BUFFER) filled = 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    master = atoi(argv[1]), teacher = atoi(argv[2]), dynamixel = argv[3][0] == 'x';
    prctl(PR_SET_PDEATHSIG, 9);
    prctl(PR_SET_TIMERSLACK, 1);
    struct sched_param priority = {.sched_priority = PRIORITY};
    realtime = sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
    struct pollfd ends[2] = {{.fd = master, .events = POLLIN}, {.fd = teacher, .events = POLLIN}};
    for (;;) {
        if (poll(ends, 2, -1) < 0) continue;
        if (ends[0].revents) take();
        if (ends[1].revents) {
            uint8_t data[ANSWER];
            ssize_t got = recv(teacher, data, sizeof data, MSG_DONTWAIT);
            if (got == 0) return 0;
            if (got > 0) command(data, got);
        }
    }
}
