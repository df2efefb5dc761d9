// An NBD server without a disk: what recv and send of the same bytes cost on this machine. Benchmarks/compare measures it beside the real
// ones, as the floor below which no server gets in this way of working: one thread for each client, one recv for as many requests as have
// arrived, one sendmsg for all their replies, data always from the same memory, writes thrown away.
//
//     floor SIZE -u PATH | -p PORT      (bytes; TCP on 127.0.0.1)
//
// Speaks the newstyle handshake (EXPORT_NAME, INFO, GO) and simple replies; refuses every other option. Trusts its client: requests are
// taken to be in bounds and at most 32 MiB long.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { EXPORT_NAME = 1, ABORT = 2, INFO = 6, GO = 7 };
enum { READ = 0, WRITE = 1, DISC = 2 };
// Has flags, FLUSH, FUA, many connections: what the peers say of a plain file, as far as it costs nothing here.
enum { FLAGS = 1 | 4 | 8 | 256 };
enum { INBOX = 256 << 10, DATA = 32 << 20, BATCH = 500 };

static uint64_t size;
static char data[DATA];

struct __attribute__((packed)) request { uint32_t magic; uint16_t flags, type; uint64_t cookie, offset; uint32_t length; };
struct __attribute__((packed)) reply { uint32_t magic, error; uint64_t cookie; };
struct __attribute__((packed)) option { uint64_t magic; uint32_t number, length; };
struct __attribute__((packed)) answer { uint64_t magic; uint32_t option, type, length; };

static int receive(int link, void *to, size_t count) {
    for (char *at = to; count > 0;) {
        ssize_t got = recv(link, at, count, 0);
        if (got <= 0) return -1;
        at += got, count -= got;
    }
    return 0;
}

static int transmit(int link, struct iovec *parts, size_t count) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    while (message.msg_iovlen > 0) {
        ssize_t sent = sendmsg(link, &message, MSG_NOSIGNAL);
        if (sent < 0) return -1;
        // A blocking send takes everything, but a signal may cut it.
        while (message.msg_iovlen > 0 && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= message.msg_iov->iov_len;
            message.msg_iov++, message.msg_iovlen--;
        }
        if (message.msg_iovlen > 0) {
            message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= sent;
        }
    }
    return 0;
}

static int say(int link, const void *bytes, size_t count) {
    struct iovec part = {(void *)bytes, count};
    return transmit(link, &part, 1);
}

static int answer(int link, uint32_t option, uint32_t type, const void *bytes, uint32_t count) {
    struct answer head = {htobe64(0x0003e889045565a9), htobe32(option), htobe32(type), htobe32(count)};
    return say(link, &head, sizeof head) || (count > 0 && say(link, bytes, count));
}

static int handshake(int link) {
    struct __attribute__((packed)) { char magic[8]; uint64_t option; uint16_t flags; } hello = {"NBDMAGIC", htobe64(0x49484156454f5054), htobe16(3)};
    struct __attribute__((packed)) { uint64_t size; uint16_t flags; char zeroes[124]; } export = {htobe64(size), htobe16(FLAGS), {0}};
    struct __attribute__((packed)) { uint16_t type; uint64_t size; uint16_t flags; } info = {0, htobe64(size), htobe16(FLAGS)};
    uint32_t client;
    if (say(link, &hello, sizeof hello) || receive(link, &client, sizeof client)) return -1;
    for (;;) {
        struct option option;
        char body[4096];
        if (receive(link, &option, sizeof option)) return -1;
        uint32_t number = be32toh(option.number), length = be32toh(option.length);
        if (length > sizeof body || receive(link, body, length)) return -1;
        switch (number) {
        case EXPORT_NAME:
            return say(link, &export, be32toh(client) & 2 ? 10 : sizeof export);
        case INFO:
        case GO:
            if (answer(link, number, 3, &info, sizeof info) || answer(link, number, 1, NULL, 0)) return -1;
            if (number == GO) return 0;
            break;
        case ABORT:
            answer(link, number, 1, NULL, 0);
            return -1;
        default:
            if (answer(link, number, 0x80000001, NULL, 0)) return -1;
        }
    }
}

static void *serve(void *argument) {
    int link = (int)(intptr_t)argument;
    char *inbox = malloc(INBOX);
    struct reply *replies = malloc(BATCH * sizeof *replies);
    struct iovec *parts = malloc(2 * BATCH * sizeof *parts);
    size_t at = 0, end = 0;
    if (handshake(link)) goto done;
    for (;;) {
        size_t count = 0, used = 0;
        while (end - at >= sizeof(struct request) && count < BATCH) {
            struct request request;
            memcpy(&request, inbox + at, sizeof request);
            uint32_t length = be32toh(request.length);
            uint16_t type = be16toh(request.type);
            if (request.magic != htobe32(0x25609513) || type == DISC || length > DATA) goto done;
            at += sizeof request;
            if (type == WRITE) {
                size_t here = length < end - at ? length : end - at;
                at += here;
                if (here < length) {  // the replies before need not wait for the rest of the payload
                    if (transmit(link, parts, used)) goto done;
                    count = used = at = end = 0;
                    for (size_t rest = length - here; rest > 0;) {
                        ssize_t got = recv(link, inbox, rest < INBOX ? rest : INBOX, 0);
                        if (got <= 0) goto done;
                        rest -= got;
                    }
                }
            }
            replies[count] = (struct reply){htobe32(0x67446698), 0, request.cookie};
            parts[used++] = (struct iovec){&replies[count++], sizeof *replies};
            if (type == READ) parts[used++] = (struct iovec){data, length};
        }
        if (transmit(link, parts, used)) goto done;
        if (end - at >= sizeof(struct request)) continue;
        memmove(inbox, inbox + at, end -= at);
        at = 0;
        ssize_t got = recv(link, inbox + end, INBOX - end, 0);
        if (got <= 0) goto done;
        end += got;
    }
done:
    close(link);
    free(inbox), free(replies), free(parts);
    return NULL;
}

int main(int count, char **words) {
    if (count != 4) return fprintf(stderr, "floor SIZE -u PATH | -p PORT\n"), 2;
    size = strtoull(words[1], NULL, 10);
    memset(data, 0x5a, sizeof data);  // else all of it would be one page of zeroes
    int local = words[2][1] == 'u', one = 1;
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_port = htons(atoi(words[3])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    strncpy(path.sun_path, words[3], sizeof path.sun_path - 1);
    int listener = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, local ? (void *)&path : (void *)&port, local ? sizeof path : sizeof port) || listen(listener, 128)) return perror("floor"), 1;
    for (;;) {
        int link = accept(listener, NULL, NULL);
        if (link < 0) return perror("floor"), 1;
        if (!local) setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)link)) close(link);
        else pthread_detach(thread);
    }
}
