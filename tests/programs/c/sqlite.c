/* SQLite, in memory and in files, with a rollback journal and with a write-ahead log, whose index is a file that is
   mapped and shared, behind the small server of the test guests. */
#include "../../guests/guest.h"

#include <sqlite3.h>

static int add_row(void *sum, int columns, char **values, char **names) {
    (void)columns;
    (void)names;
    *(long *)sum += values[0] != NULL ? atol(values[0]) : 0;
    return 0;
}

static void query(const struct request *request, const char *file) {
    sqlite3 *database;
    char *problem = NULL;
    long sum = 0;
    int failed = sqlite3_open(file, &database);
    failed = failed || sqlite3_exec(database,
                                    "create table t(id integer primary key, n integer, text text);"
                                    "begin;"
                                    "with recursive c(i) as (select 1 union all select i + 1 from c where i < 2000)"
                                    " insert into t(n, text) select i * 7 % 1000, 'row ' || i from c;"
                                    "commit;"
                                    "create index by_n on t(n);"
                                    "delete from t where n < 100; vacuum;",
                                    NULL, NULL, &problem);
    failed = failed || sqlite3_exec(database, "select sum(n) + count(*) from t where text like '%7%'", add_row, &sum,
                                    &problem);
    if (failed)
        answer(request, "failed: %s\n", problem != NULL ? problem : sqlite3_errmsg(database));
    else
        answer(request, "%ld %s\n", sum, sqlite3_libversion());
    sqlite3_close(database);
}

/* What all rows of an answer say, one after the other. */
static int add_text(void *text, int columns, char **values, char **names) {
    (void)names;
    for (int column = 0; column < columns; column++) {
        size_t used = strlen(text);
        snprintf((char *)text + used, 512 - used, "%s ", values[column] != NULL ? values[column] : "null");
    }
    return 0;
}

static int run(sqlite3 *database, const char *statements, char *text) {
    char *problem = NULL;
    int failed = sqlite3_exec(database, statements, add_text, text, &problem);
    if (failed) {
        size_t used = strlen(text);
        snprintf(text + used, 512 - used, "(%d: %s) ", failed, problem != NULL ? problem : "?");
    }
    return failed;
}

/* A writer and a reader, each with a connection of its own, and the database mapped as well. */
static void write_ahead(const struct request *request, const char *file) {
    sqlite3 *writer, *reader;
    char text[512] = "";
    if (sqlite3_open(file, &writer) != SQLITE_OK || sqlite3_open(file, &reader) != SQLITE_OK) {
        answer(request, "failed to open\n");
        return;
    }
    run(writer, "pragma journal_mode=wal; pragma mmap_size=1048576; pragma wal_autocheckpoint=50;", text);
    run(reader, "pragma mmap_size=4194304;", text);
    run(writer, "create table t(id integer primary key, text text);", text);
    for (int i = 0; i < 40; i++) {
        char statement[256];
        snprintf(statement, sizeof statement,
                 "begin; with recursive c(i) as (select 1 union all select i + 1 from c where i < 50)"
                 " insert into t(text) select hex(zeroblob(100 + i)) || i from c; commit;");
        run(writer, statement, text);
        if (i % 10 == 0)
            run(reader, "select count(*), sum(length(text)) from t;", text);
        /* What was read before a writer came is read again, whatever he does. */
        if (i == 15)
            run(reader, "begin; select count(*) from t;", text);
        if (i == 25)
            run(reader, "select count(*) from t; commit; select count(*) from t;", text);
    }
    run(writer, "pragma wal_checkpoint(truncate);", text);
    run(reader, "select count(*), max(length(text)) from t; pragma integrity_check;", text);
    run(writer, "delete from t where id % 3 = 0; pragma incremental_vacuum; vacuum; pragma page_count;", text);
    run(reader, "select count(*) from t; pragma journal_mode;", text);
    sqlite3_close(reader);
    sqlite3_close(writer);
    answer(request, "%s\n", text);
}

static void remove_all(const char *file) {
    char name[64];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s%s", file, (const char *[]){"", "-wal", "-shm"}[i]);
        remove(name);
    }
}

static void handle(const struct request *request) {
    if (is_path(request, "/memory"))
        query(request, ":memory:");
    else if (is_path(request, "/tmp")) {
        remove("/tmp/holm-test.db");
        query(request, "/tmp/holm-test.db");
        remove("/tmp/holm-test.db");
    } else if (is_path(request, "/wal") || is_path(request, "/shm")) {
        const char *file = is_path(request, "/wal") ? "/tmp/holm-wal.db" : "/dev/shm/holm-wal.db";
        remove_all(file);
        write_ahead(request, file);
        remove_all(file);
    } else
        answer(request, "hello from SQLite\n");
}

int main(void) {
    serve(handle);
}
