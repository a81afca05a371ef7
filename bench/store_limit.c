/* What SQLite itself can take: one prepared INSERT, bound and stepped in C, in transactions of a given size.
 *
 * usage: store_limit FILE EVENTS BATCH PAYLOAD_BYTES      prints events per second
 * The table `events` must exist; the file is in write-ahead mode with full durability, like the store's. */

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static sqlite3 *db;

static void check(int code, int wanted) {
    if (code != wanted) {
        fprintf(stderr, "%s\n", sqlite3_errmsg(db));
        exit(1);
    }
}

static void run(const char *sql) { check(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK); }

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    long events = atol(argv[2]), batch = atol(argv[3]);
    int size = atoi(argv[4]);
    char *payload = malloc(size);
    memset(payload, 'x', size);
    unsigned char id[16] = {1, 0x9a, 0x20, 0x52, 0, 0, 0x70};
    check(sqlite3_open_v2(argv[1], &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
    run("PRAGMA journal_mode=WAL");
    run("PRAGMA synchronous=FULL");
    run("PRAGMA wal_autocheckpoint=0");
    sqlite3_stmt *insert, *begin, *commit;
    const char *sql = "INSERT INTO events (position, event_id, at, type, schema, writer_seq, stream, cause, codec, payload,"
                      " writer) VALUES (?,?,?,?,?,?,?,?,?,?,1)";
    check(sqlite3_prepare_v2(db, sql, -1, &insert, NULL), SQLITE_OK);
    check(sqlite3_prepare_v2(db, "BEGIN IMMEDIATE", -1, &begin, NULL), SQLITE_OK);
    check(sqlite3_prepare_v2(db, "COMMIT", -1, &commit, NULL), SQLITE_OK);
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (long n = 1; n <= events; n++) {
        if ((n - 1) % batch == 0) { check(sqlite3_step(begin), SQLITE_DONE); sqlite3_reset(begin); }
        for (int i = 0; i < 8; i++) id[15 - i] = (unsigned char)((unsigned long)n >> (8 * i));
        sqlite3_bind_int64(insert, 1, n);
        sqlite3_bind_blob(insert, 2, id, 16, SQLITE_STATIC);
        sqlite3_bind_int64(insert, 3, 1767225600000000000 + n);
        sqlite3_bind_int(insert, 4, 1);
        sqlite3_bind_int(insert, 5, 1);
        sqlite3_bind_int64(insert, 6, n);
        sqlite3_bind_text(insert, 7, "request/0123456789abcdef0123456789abcdef", -1, SQLITE_STATIC);
        sqlite3_bind_null(insert, 8);
        sqlite3_bind_int(insert, 9, 0);
        sqlite3_bind_blob(insert, 10, payload, size, SQLITE_STATIC);
        check(sqlite3_step(insert), SQLITE_DONE);
        sqlite3_reset(insert);
        if (n % batch == 0 || n == events) { check(sqlite3_step(commit), SQLITE_DONE); sqlite3_reset(commit); }
        if (n % 16384 == 0) run("PRAGMA wal_checkpoint(PASSIVE)");
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%.0f\n", events / ((to.tv_sec - from.tv_sec) + (to.tv_nsec - from.tv_nsec) / 1e9));
    return 0;
}
