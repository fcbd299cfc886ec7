/*
 * Line editor: what it remembers, which is the history of lines and the text killed last, and
 * the reverse search in the history.
 *
 * The history is a ring of LINEEDIT_HISTORY strings. Entries are named by age: 1 is the newest,
 * history_count the oldest, and 0 is no entry but the draft, the line the user was typing before
 * going up. The draft is kept aside while an entry is being edited; changes to an entry are
 * dropped on moving on, the entry itself never changes.
 *
 * A search keeps the line it began with in `saved` and shows the entry found in `line`, so that
 * accepting it is merely leaving search mode. The text searched for is always one that was found:
 * a byte that would match nothing is refused.
 *
 * Invariants: history_age and search_age are at most history_count, which is at most
 * LINEEDIT_HISTORY; killed_length is at most LINEEDIT_MAX; every entry, the draft and the saved
 * line are NUL-terminated.
 */
#include "console/lineedit_priv.h"
#include "lib/string.h"

static const char *lineedit_history_entry(const struct lineedit *le, size_t age)
{
    return le->history[(le->history_next + LINEEDIT_HISTORY - age) % LINEEDIT_HISTORY];
}

static bool lineedit_history_is_newest(const struct lineedit *le)
{
    return le->history_count > 0 &&
           memcmp(lineedit_history_entry(le, 1), le->line, le->length + 1) == 0;
}

/* Remembers the line, unless it is empty or the same as the last one. */
void lineedit_history_add(struct lineedit *le)
{
    if (le->length == 0 || lineedit_history_is_newest(le))
        return;
    memcpy(le->history[le->history_next], le->line, le->length + 1);
    le->history_next = (le->history_next + 1) % LINEEDIT_HISTORY;
    if (le->history_count < LINEEDIT_HISTORY)
        le->history_count++;
}

static void lineedit_history_show(struct lineedit *le, size_t age)
{
    if (le->history_age == 0)
        memcpy(le->draft, le->line, le->length + 1);
    le->history_age = age;
    lineedit_set_text(le, age == 0 ? le->draft : lineedit_history_entry(le, age), LINEEDIT_MAX);
}

void lineedit_history_older(struct lineedit *le)
{
    if (le->history_age < le->history_count)
        lineedit_history_show(le, le->history_age + 1);
    else
        lineedit_ring_bell(le);
}

void lineedit_history_newer(struct lineedit *le)
{
    if (le->history_age > 0)
        lineedit_history_show(le, le->history_age - 1);
    else
        lineedit_ring_bell(le);
}

void lineedit_search_begin(struct lineedit *le)
{
    memcpy(le->saved, le->line, le->length + 1);
    le->saved_cursor = le->cursor;
    le->query_length = 0;
    le->query[0] = '\0';
    le->search_age = 0;
    le->searching = true;
}

/* Finds the query in the entry and stores its place. */
static bool lineedit_search_match(const struct lineedit *le, const char *entry, size_t *place)
{
    for (size_t i = 0; entry[i] != '\0'; i++) {
        if (strncmp(entry + i, le->query, le->query_length) == 0) {
            *place = i;
            return true;
        }
    }
    return false;
}

/* Shows the newest entry of at least this age that has the query in it. */
static bool lineedit_search_find(struct lineedit *le, size_t age)
{
    size_t place = 0;

    for (; age <= le->history_count; age++) {
        if (lineedit_search_match(le, lineedit_history_entry(le, age), &place)) {
            le->search_age = age;
            lineedit_set_text(le, lineedit_history_entry(le, age), place);
            return true;
        }
    }
    return false;
}

static void lineedit_search_extend(struct lineedit *le, char byte)
{
    if (le->query_length < LINEEDIT_QUERY_MAX) {
        le->query[le->query_length++] = byte;
        le->query[le->query_length] = '\0';
        if (lineedit_search_find(le, le->search_age > 0 ? le->search_age : 1))
            return;
        le->query[--le->query_length] = '\0';
    }
    lineedit_ring_bell(le);
}

static void lineedit_search_shorten(struct lineedit *le)
{
    if (le->query_length == 0) {
        lineedit_ring_bell(le);
        return;
    }
    le->query[--le->query_length] = '\0';
    if (le->query_length > 0) {
        lineedit_search_find(le, 1);
    } else {
        le->search_age = 0;
        lineedit_set_text(le, le->saved, le->saved_cursor);
    }
}

static void lineedit_search_next(struct lineedit *le)
{
    if (le->query_length == 0 || !lineedit_search_find(le, le->search_age + 1))
        lineedit_ring_bell(le);
}

static void lineedit_search_abort(struct lineedit *le)
{
    le->searching = false;
    lineedit_set_text(le, le->saved, le->saved_cursor);
}

/* Keeps the line found; up and down go on from it, and the draft is still below. */
static void lineedit_search_accept(struct lineedit *le)
{
    le->searching = false;
    if (le->search_age == 0)
        return;
    if (le->history_age == 0)
        memcpy(le->draft, le->saved, sizeof(le->draft));
    le->history_age = le->search_age;
}

/* Any key that does not work on the search ends it and then does what it always does. */
bool lineedit_search_key(struct lineedit *le, int key)
{
    if (key < LINEEDIT_KEY_DELETE && lineedit_is_printable((unsigned char)key)) {
        lineedit_search_extend(le, (char)key);
        return true;
    }
    switch (key) {
    case LINEEDIT_CTRL('R'):
        lineedit_search_next(le);
        return true;
    case LINEEDIT_CTRL('H'):
    case LINEEDIT_KEY_BACKSPACE:
        lineedit_search_shorten(le);
        return true;
    case LINEEDIT_CTRL('G'):
        lineedit_search_abort(le);
        return true;
    default:
        lineedit_search_accept(le);
        return false;
    }
}

/*
 * Moves the text from start to end, one of which is the cursor, to the kill buffer. Kills that
 * follow one another directly gather there, in the order the text had.
 */
void lineedit_kill_range(struct lineedit *le, size_t start, size_t end)
{
    size_t n = end - start;

    if (n == 0)
        return;
    if (le->kill_turn + 1 != le->turn || n > LINEEDIT_MAX - le->killed_length)
        le->killed_length = 0;
    size_t at = start < le->cursor ? 0 : le->killed_length;
    memmove(le->killed + at + n, le->killed + at, le->killed_length - at);
    memcpy(le->killed + at, le->line + start, n);
    le->killed_length += n;
    le->kill_turn = le->turn;
    lineedit_delete_range(le, start, end);
}

void lineedit_kill_to_start(struct lineedit *le)
{
    lineedit_kill_range(le, 0, le->cursor);
}

void lineedit_kill_to_end(struct lineedit *le)
{
    lineedit_kill_range(le, le->cursor, le->length);
}

void lineedit_yank_killed(struct lineedit *le)
{
    lineedit_insert_text(le, le->killed, le->killed_length);
}
