/* SQLite, in memory and in a file of /tmp, behind the small server of the test guests. */
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

static void handle(const struct request *request) {
    if (is_path(request, "/memory"))
        query(request, ":memory:");
    else if (is_path(request, "/tmp")) {
        remove("/tmp/holm-test.db");
        query(request, "/tmp/holm-test.db");
        remove("/tmp/holm-test.db");
    } else
        answer(request, "hello from SQLite\n");
}

int main(void) {
    serve(handle);
}
