/*
 * The line editor of the serial console.
 *
 * Bytes from the terminal go in one at a time with lineedit_feed(), echo comes out through the
 * write callback, and a finished line is read with lineedit_line(). The editor allocates nothing,
 * has no state outside struct lineedit and takes no lock: its caller serialises the calls.
 *
 * A conversation:
 *
 *     lineedit_init(&editor, &ops, ctx, "kos> ");
 *     for (;;) {
 *         lineedit_start(&editor);
 *         do {
 *             event = lineedit_feed(&editor, console_read_byte());
 *         } while (event == LINEEDIT_MORE);
 *         if (event == LINEEDIT_LINE)
 *             run(lineedit_line(&editor));
 *     }
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LINEEDIT_MAX = 255,      /* bytes in a line, without the terminating NUL */
    LINEEDIT_COLUMNS = 80,   /* width of the terminal */
    LINEEDIT_HISTORY = 32,   /* lines remembered */
    LINEEDIT_QUERY_MAX = 32, /* bytes in the text of a reverse search */
};

struct lineedit_ops {
    void (*write)(void *ctx, const char *bytes, size_t n);

    /*
     * Completion: calls add() with each word that may stand at the cursor, given the text before
     * it. A word replaces the text from the last space to the cursor; one that does not begin with
     * that text, or has bytes that are not printable ASCII, is ignored. May be NULL.
     */
    void (*complete)(void *ctx, const char *line, size_t cursor,
                     void (*add)(void *arg, const char *word), void *arg);
};

enum lineedit_event {
    LINEEDIT_MORE,      /* the line is not finished */
    LINEEDIT_LINE,      /* Enter: lineedit_line() has the line */
    LINEEDIT_INTERRUPT, /* Ctrl-C: the line is dropped and a new one has been started */
    LINEEDIT_EOF,       /* Ctrl-D on an empty line */
};

/* One terminal row: what stands in it from column 0 on, and the column of the cursor. */
struct lineedit_row {
    char cells[LINEEDIT_COLUMNS];
    size_t length;
    size_t cursor;
};

/* The fields belong to the lineedit files; everybody else uses the functions below. */
struct lineedit {
    const struct lineedit_ops *ops;
    void *ctx;
    const char *prompt;

    char line[LINEEDIT_MAX + 1]; /* the text, NUL-terminated */
    size_t length;
    size_t cursor;

    bool active; /* between lineedit_start() and the end of the line */
    bool hidden; /* between lineedit_hide() and lineedit_show() */
    size_t scroll;
    struct lineedit_row shown; /* what the terminal shows now */

    unsigned char previous; /* the byte fed before this one */
    uint8_t state;          /* enum lineedit_state: how far into an escape sequence */
    bool odd;               /* the sequence holds bytes no known key has */
    uint8_t param;          /* the parameter being read */
    uint16_t params[2];

    uint32_t turn; /* counts keys, to tell which of them follow one another directly */
    uint32_t kill_turn;
    uint32_t tab_turn;
    char killed[LINEEDIT_MAX]; /* what Ctrl-Y inserts */
    size_t killed_length;

    char history[LINEEDIT_HISTORY][LINEEDIT_MAX + 1]; /* a ring */
    size_t history_next;                              /* the slot written next */
    size_t history_count;
    size_t history_age;           /* line being edited: 0 the draft, 1 the newest entry, ... */
    char draft[LINEEDIT_MAX + 1]; /* the draft, while history_age is not 0 */

    bool searching;
    char query[LINEEDIT_QUERY_MAX + 1];
    size_t query_length;
    size_t search_age;            /* the entry found, 0 for none */
    char saved[LINEEDIT_MAX + 1]; /* the line and cursor to return to when the search is left */
    size_t saved_cursor;
};

/* The prompt is printable ASCII; it and ops must outlive the editor. */
void lineedit_init(struct lineedit *le, const struct lineedit_ops *ops, void *ctx,
                   const char *prompt);

/*
 * Starts an empty line and shows the prompt; the terminal's cursor must stand in column 0. On a
 * line already started (as after LINEEDIT_INTERRUPT) it changes nothing.
 */
void lineedit_start(struct lineedit *le);

/* Takes one byte. A byte that comes when no line is started starts one. */
enum lineedit_event lineedit_feed(struct lineedit *le, unsigned char byte);

/* The NUL-terminated line after LINEEDIT_LINE; it stays until the next start or feed. */
const char *lineedit_line(const struct lineedit *le);

/*
 * For output from elsewhere: hide erases the prompt row and leaves the cursor in column 0, show
 * draws it again and needs the cursor in column 0. Either one twice is as good as once, and both
 * do nothing while no line is started. A byte fed while hidden shows the line again.
 */
void lineedit_hide(struct lineedit *le);
void lineedit_show(struct lineedit *le);
