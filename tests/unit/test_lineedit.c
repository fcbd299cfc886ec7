/* sources: kernel/console/lineedit.c kernel/console/lineedit_complete.c kernel/console/lineedit_history.c */
/*
 * Hosted test of the console's line editor: types at it and looks at the screen.
 *
 * The editor writes to a small model of an 80-column terminal, which knows only the sequences the
 * editor may use and counts whatever else it is sent, and every character that reaches the last
 * column, as a fault. Most checks are rows of a table: the bytes typed, and then what stands in
 * the cursor's row and where the cursor is. The last test types pseudo-random bytes and checks
 * after each that the text, the cursor and the screen agree.
 *
 * Output is TAP; the exit status is 1 if a check failed.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "console/lineedit.h"

#define ESC          "\033"
#define UP           ESC "[A"
#define DOWN         ESC "[B"
#define RIGHT        ESC "[C"
#define LEFT         ESC "[D"
#define PROMPT       "$ "
#define TEN          "0123456789"
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { ROWS = 16, COLUMNS = 80 };

/* ---- The terminal ---- */

struct terminal {
    char cells[ROWS][COLUMNS + 1];
    int row, column;
    int escape; /* 0, 1 after ESC, 2 after ESC [ */
    int number;
    int bells, clears, faults;
};

static void terminal_clear_cells(struct terminal *t)
{
    memset(t->cells, ' ', sizeof(t->cells));
    for (int row = 0; row < ROWS; row++)
        t->cells[row][COLUMNS] = '\0';
}

static void terminal_reset(struct terminal *t)
{
    memset(t, 0, sizeof(*t));
    terminal_clear_cells(t);
}

static void terminal_move(struct terminal *t, int column)
{
    if (column < 0 || column >= COLUMNS) {
        t->faults++;
        column = column < 0 ? 0 : COLUMNS - 1;
    }
    t->column = column;
}

static void terminal_line_feed(struct terminal *t)
{
    if (t->row < ROWS - 1) {
        t->row++;
        return;
    }
    memmove(t->cells[0], t->cells[1], sizeof(t->cells[0]) * (ROWS - 1));
    memset(t->cells[ROWS - 1], ' ', COLUMNS);
}

static void terminal_run_escape(struct terminal *t, char final)
{
    t->escape = 0;
    switch (final) {
    case 'K':
        memset(t->cells[t->row] + t->column, ' ', (size_t)(COLUMNS - t->column));
        break;
    case 'C':
        terminal_move(t, t->column + t->number);
        break;
    case 'D':
        terminal_move(t, t->column - t->number);
        break;
    case 'H':
        t->row = t->column = 0;
        break;
    case 'J':
        t->faults += t->number != 2;
        t->clears++;
        terminal_clear_cells(t);
        break;
    default:
        t->faults++;
    }
}

static void terminal_put_plain(struct terminal *t, char byte)
{
    if (byte == '\r') {
        t->column = 0;
    } else if (byte == '\n') {
        terminal_line_feed(t);
    } else if (byte == '\b') {
        terminal_move(t, t->column - 1);
    } else if (byte == '\a') {
        t->bells++;
    } else if (byte >= ' ' && byte < 0x7f) {
        t->cells[t->row][t->column] = byte;
        terminal_move(t, t->column + 1);
    } else {
        t->faults++;
    }
}

static void terminal_put(struct terminal *t, char byte)
{
    if (byte == '\033') {
        t->faults += t->escape != 0;
        t->escape = 1;
        t->number = 0;
    } else if (t->escape == 1) {
        t->faults += byte != '[';
        t->escape = 2;
    } else if (t->escape == 2 && byte >= '0' && byte <= '9') {
        t->number = t->number * 10 + (byte - '0');
    } else if (t->escape == 2) {
        terminal_run_escape(t, byte);
    } else {
        terminal_put_plain(t, byte);
    }
}

/* The text of a row without the blanks at its end. */
static const char *terminal_row(const struct terminal *t, int row)
{
    static char text[COLUMNS + 1];
    size_t length = COLUMNS;

    while (length > 0 && t->cells[row][length - 1] == ' ')
        length--;
    memcpy(text, t->cells[row], length);
    text[length] = '\0';
    return text;
}

/* ---- The console: an editor, its terminal and what came out ---- */

struct console {
    struct lineedit editor;
    struct terminal terminal;
    char output[4096]; /* the raw bytes written */
    size_t output_length;
    char last[LINEEDIT_MAX + 1]; /* the last line finished */
    int lines, interrupts, ends;
    const char *const *words;
};

static struct console console;

static void console_write(void *ctx, const char *bytes, size_t n)
{
    struct console *c = ctx;

    for (size_t i = 0; i < n; i++) {
        terminal_put(&c->terminal, bytes[i]);
        if (c->output_length < sizeof(c->output) - 1)
            c->output[c->output_length++] = bytes[i];
    }
    c->output[c->output_length] = '\0';
}

static void console_complete(void *ctx, const char *line, size_t cursor,
                             void (*add)(void *arg, const char *word), void *arg)
{
    const struct console *c = ctx;

    (void)line;
    (void)cursor;
    for (const char *const *word = c->words; *word != NULL; word++)
        add(arg, *word);
}

static const struct lineedit_ops console_ops = {console_write, console_complete};

static const char *const console_words[] = {"help",  "halt",  "history", "mem", "memory/",
                                            "trace", "bad\n", "bad\033", "",    NULL};

static void console_begin(void)
{
    memset(&console, 0, sizeof(console));
    terminal_reset(&console.terminal);
    console.words = console_words;
    lineedit_init(&console.editor, &console_ops, &console, PROMPT);
    lineedit_start(&console.editor);
}

static void console_type_byte(unsigned char byte)
{
    enum lineedit_event event = lineedit_feed(&console.editor, byte);

    if (event == LINEEDIT_LINE) {
        snprintf(console.last, sizeof(console.last), "%s", lineedit_line(&console.editor));
        console.lines++;
    }
    console.interrupts += event == LINEEDIT_INTERRUPT;
    console.ends += event == LINEEDIT_EOF;
    if (event != LINEEDIT_MORE)
        lineedit_start(&console.editor);
}

static void console_type(const char *bytes)
{
    while (*bytes != '\0')
        console_type_byte((unsigned char)*bytes++);
}

/* ---- Checks ---- */

static int checks, failures;

static void check_report(bool good, const char *name)
{
    checks++;
    failures += !good;
    printf("%sok %d - %s\n", good ? "" : "not ", checks, name);
}

static void check_print(const char *label, const char *text)
{
    printf("#   %s \"", label);
    for (; *text != '\0'; text++) {
        if (*text >= ' ' && *text < 0x7f)
            putchar(*text);
        else
            printf("\\x%02x", (unsigned char)*text);
    }
    printf("\"\n");
}

static void check_text(const char *name, const char *found, const char *expected)
{
    bool good = strcmp(found, expected) == 0;

    check_report(good, name);
    if (!good) {
        check_print("expected", expected);
        check_print("found   ", found);
    }
}

static void check_number(const char *name, long found, long expected)
{
    check_report(found == expected, name);
    if (found != expected)
        printf("#   expected %ld\n#   found    %ld\n", expected, found);
}

/* The cursor's row and the cursor, written as "$ text" with a bar where the cursor stands. */
static const char *screen_line(void)
{
    static char text[COLUMNS + 2];
    const struct terminal *t = &console.terminal;
    size_t column = (size_t)t->column;
    char row[COLUMNS + 1];

    snprintf(row, sizeof(row), "%-*s", t->column, terminal_row(t, t->row));
    snprintf(text, sizeof(text), "%.*s|%s", t->column, row, row + column);
    return text;
}

static void check_screen(const char *name, const char *expected)
{
    check_text(name, screen_line(), expected);
    if (console.terminal.faults != 0)
        check_number("the terminal understood everything", console.terminal.faults, 0);
}

struct screen_case {
    const char *name;
    const char *typed;
    const char *screen;
    int bells;
};

static void check_cases(const struct screen_case *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        console_begin();
        console_type(cases[i].typed);
        check_screen(cases[i].name, cases[i].screen);
        if (console.terminal.bells != cases[i].bells)
            check_number("bells rung", console.terminal.bells, cases[i].bells);
    }
}

/* ---- Tests ---- */

static void test_editing(void)
{
    static const struct screen_case cases[] = {
        {"the prompt is shown", "", "$ |", 0},
        {"text is echoed", "help", "$ help|", 0},
        {"text is inserted in the middle", "hlp" LEFT LEFT "e", "$ he|lp", 0},
        {"text is inserted at the start", "elp\001h", "$ h|elp", 0},
        {"0x7f deletes to the left", "help\177", "$ hel|", 0},
        {"0x08 deletes to the left", "help\b\b", "$ he|", 0},
        {"backspace in the middle", "heelp" LEFT LEFT "\177", "$ he|lp", 0},
        {"backspace at the start rings", "help\001\177", "$ |help", 1},
        {"Delete", "heelp\001" RIGHT ESC "[3~", "$ h|elp", 0},
        {"Delete at the end rings", "help" ESC "[3~", "$ help|", 1},
        {"Ctrl-D in a line deletes to the right", "heelp\001\006\004", "$ h|elp", 0},
        {"Ctrl-D at the end of a line rings", "help\004", "$ help|", 1},
        {"Ctrl-T swaps around the cursor", "hlep" LEFT LEFT "\024", "$ hel|p", 0},
        {"Ctrl-T at the end swaps the last two", "hepl\024", "$ help|", 0},
        {"Ctrl-T at the start rings", "help\001\024", "$ |help", 1},
        {"Ctrl-T in a line of one rings", "h\024", "$ h|", 1},
        {"control bytes without a meaning do nothing", "he\034\035lp", "$ help|", 0},
    };
    check_cases(cases, COUNT(cases));
}

static void test_moves(void)
{
    static const struct screen_case cases[] = {
        {"left arrow", "help" LEFT, "$ hel|p", 0},
        {"left arrow stops at the start", "ab" LEFT LEFT LEFT "x", "$ x|ab", 0},
        {"right arrow", "help" LEFT LEFT RIGHT, "$ hel|p", 0},
        {"right arrow stops at the end", "ab" RIGHT "x", "$ abx|", 0},
        {"application-mode arrows", "help" ESC "OD" ESC "OD" ESC "OC", "$ hel|p", 0},
        {"Ctrl-B and Ctrl-F", "help\002\002\006", "$ hel|p", 0},
        {"Ctrl-A", "a long line\001", "$ |a long line", 0},
        {"Ctrl-E", "a long line\001\005", "$ a long line|", 0},
        {"Home as ESC [ H", "help" ESC "[H", "$ |help", 0},
        {"Home as ESC [ 1 ~", "help" ESC "[1~", "$ |help", 0},
        {"Home as ESC [ 7 ~", "help" ESC "[7~", "$ |help", 0},
        {"Home as ESC O H", "help" ESC "OH", "$ |help", 0},
        {"End as ESC [ F", "help\001" ESC "[F", "$ help|", 0},
        {"End as ESC [ 4 ~", "help\001" ESC "[4~", "$ help|", 0},
        {"End as ESC [ 8 ~", "help\001" ESC "[8~", "$ help|", 0},
        {"End as ESC O F", "help\001" ESC "OF", "$ help|", 0},
        {"Alt-B", "mem dump 0x10" ESC "b", "$ mem dump |0x10", 0},
        {"Alt-B over blanks and signs", "mem dump --" ESC "b" ESC "B", "$ |mem dump --", 0},
        {"Alt-F", "mem dump 0x10\001" ESC "f", "$ mem| dump 0x10", 0},
        {"Alt-F twice", "mem -dump 0x10\001" ESC "f" ESC "F", "$ mem -dump| 0x10", 0},
        {"Ctrl-left", "mem dump" ESC "[1;5D", "$ mem |dump", 0},
        {"Ctrl-right", "mem dump\001" ESC "[1;5C", "$ mem| dump", 0},
        {"Alt-left moves by a word, Shift-left by one", "a bcd" ESC "[1;3D" ESC "[1;2D", "$ a| bcd",
         0},
    };
    check_cases(cases, COUNT(cases));
}

static void test_killing(void)
{
    static const struct screen_case cases[] = {
        {"Ctrl-K", "mem dump" LEFT LEFT LEFT LEFT "\013", "$ mem |", 0},
        {"Ctrl-U", "mem dump" LEFT LEFT LEFT LEFT "\025", "$ |dump", 0},
        {"Ctrl-W", "mem dump 0x10\027", "$ mem dump |", 0},
        {"Ctrl-W takes what stands between spaces", "mem a/b-c\027", "$ mem |", 0},
        {"Ctrl-W takes the blanks before the cursor", "mem dump  \027", "$ mem |", 0},
        {"Alt-D", "mem dump\001" ESC "d", "$ | dump", 0},
        {"Alt-D, capital", "mem dump" ESC "b" ESC "D", "$ mem |", 0},
        {"Alt-Backspace", "mem a-b" ESC "\177", "$ mem a-|", 0},
        {"Ctrl-Y after Ctrl-K", "mem dump" ESC "b\013\001\031 ", "$ dump |mem", 0},
        {"Ctrl-Y after Ctrl-U", "mem\025x\031\031", "$ xmemmem|", 0},
        {"Ctrl-Y with nothing killed", "mem\031", "$ mem|", 0},
        {"kills in a row to the left gather", "a b c\027\027\031", "$ a b c|", 0},
        {"kills in a row to the right gather", "aa bb\001" ESC "d" ESC "d\031", "$ aa bb|", 0},
        {"kills both ways gather in order", "aa bb" LEFT LEFT "\025\013\031", "$ aa bb|", 0},
        {"kills apart do not gather", "a b\027x\027\031", "$ a x|", 0},
        {"an empty kill keeps what was killed", "ab\025\013\031", "$ ab|", 0},
    };
    check_cases(cases, COUNT(cases));
}

static void test_history(void)
{
    static const struct screen_case cases[] = {
        {"up arrow", "one\rtwo\r" UP, "$ two|", 0},
        {"up arrow twice", "one\rtwo\r" UP UP, "$ one|", 0},
        {"up arrow at the oldest rings", "one\r" UP UP, "$ one|", 1},
        {"up arrow without history rings", UP, "$ |", 1},
        {"application-mode up and down", "one\rtwo\r" ESC "OA" ESC "OA" ESC "OB", "$ two|", 0},
        {"Ctrl-P and Ctrl-N", "one\rtwo\r\020\020\016", "$ two|", 0},
        {"the draft comes back", "one\rdra" UP "x" DOWN "ft", "$ draft|", 0},
        {"down arrow at the draft rings", "one\rdraft" DOWN, "$ draft|", 1},
        {"a changed entry stays as it was", "one\r" UP "x" DOWN UP, "$ one|", 0},
        {"an entry can be changed and run", "one\r" UP "x\r" UP, "$ onex|", 0},
        {"an entry run again is the newest", "one\rtwo\r" UP UP "\r" UP UP, "$ two|", 0},
        {"the last line again is not stored", "one\rtwo\rtwo\r" UP UP, "$ one|", 0},
        {"an empty line is not stored", "one\r\r" UP, "$ one|", 0},
        {"an interrupted line is not stored", "one\rtwo\003" UP, "$ one|", 0},
        {"a shorter entry leaves nothing behind", "s\ra longer line\r" UP UP, "$ s|", 0},
    };
    char line[32];

    check_cases(cases, COUNT(cases));
    console_begin();
    for (int i = 0; i < LINEEDIT_HISTORY + 8; i++) {
        snprintf(line, sizeof(line), "line %d\r", i);
        console_type(line);
    }
    for (int i = 0; i < LINEEDIT_HISTORY; i++)
        console_type(UP);
    check_screen("the history holds 32 lines", "$ line 8|");
    check_number("all 32 are reached without a bell", console.terminal.bells, 0);
    console_type(UP);
    check_screen("and no more", "$ line 8|");
    for (int i = 0; i < LINEEDIT_HISTORY; i++)
        console_type(DOWN);
    check_screen("the way down ends at the empty draft", "$ |");
}

#define FOUND      "(reverse-i-search)`"
#define SOME_LINES "mem dump\rtrace on\rmem show\r"

static void test_search(void)
{
    static const struct screen_case cases[] = {
        {"Ctrl-R asks", SOME_LINES "abc\022", FOUND "': abc|", 0},
        {"a search finds the newest", SOME_LINES "\022mem", FOUND "mem': |mem show", 0},
        {"the cursor stands at the match", SOME_LINES "\022on", FOUND "on': trace |on", 0},
        {"typing on goes to an older line", SOME_LINES "\022mem d", FOUND "mem d': |mem dump", 0},
        {"Ctrl-R again goes to an older line", SOME_LINES "\022mem\022", FOUND "mem': |mem dump",
         0},
        {"Ctrl-R at the last match rings", SOME_LINES "\022mem\022\022", FOUND "mem': |mem dump",
         1},
        {"Ctrl-R with nothing to search rings", SOME_LINES "\022\022", FOUND "': |", 1},
        {"a byte that matches nothing is refused", SOME_LINES "\022memx", FOUND "mem': |mem show",
         1},
        {"backspace widens the search", SOME_LINES "\022mem d\177\b", FOUND "mem': |mem show", 0},
        {"backspace to nothing shows the draft", SOME_LINES "abc\022m\177", FOUND "': abc|", 0},
        {"backspace on nothing rings", SOME_LINES "abc\022\177", FOUND "': abc|", 1},
        {"Ctrl-G goes back to the draft", SOME_LINES "abc" LEFT "\022mem\007", "$ ab|c", 0},
        {"another key accepts the match", SOME_LINES "\022trace\005!", "$ trace on!|", 0},
        {"an arrow accepts the match", SOME_LINES "\022trace" RIGHT, "$ t|race on", 0},
        {"up goes on from the match", SOME_LINES "\022trace" UP, "$ mem dump|", 0},
        {"down from the match", SOME_LINES "abc\022trace" DOWN, "$ mem show|", 0},
        {"the draft is still below the match", SOME_LINES "abc\022trace" DOWN DOWN, "$ abc|", 0},
        {"Ctrl-C leaves the search", SOME_LINES "\022trace\003", "$ |", 0},
        {"Ctrl-D on an empty search ends it", "\022\004", "$ |", 0},
    };

    check_cases(cases, COUNT(cases));
    console_begin();
    console_type(SOME_LINES "\022trace\r");
    check_text("Enter runs the match", console.last, "trace on");
    check_text("Enter shows the match after the prompt", terminal_row(&console.terminal, 3),
               "$ trace on");
    console_begin();
    console_type(TEN TEN TEN TEN "\r\022" TEN TEN TEN TEN);
    check_number("a query longer than the limit rings", console.terminal.bells,
                 40 - LINEEDIT_QUERY_MAX);
    check_number("a query longer than the limit does not wrap", console.terminal.faults, 0);
}

static void test_completion(void)
{
    static const struct screen_case cases[] = {
        {"a unique word is completed", "tr\t", "$ trace |", 0},
        {"a unique word at the second place", "x tr\t", "$ x trace |", 0},
        {"a complete word gets its space", "trace\t", "$ trace |", 0},
        {"completion in the middle", "tr x" LEFT LEFT "\t", "$ trace |x", 0},
        {"nothing to complete rings", "zz\t", "$ zz|", 1},
        {"several words: what they share", "m\t", "$ mem|", 0},
        {"several words that share no more ring", "h\t", "$ h|", 1},
        {"a directory goes on without a space", "memo\t", "$ memory/|", 0},
        {"the second Tab redraws the line", "h\t\t", "$ h|", 1},
        {"a key in between disarms the second Tab", "h\t" LEFT RIGHT "\t", "$ h|", 2},
        {"the cursor stays in the middle after a list", "hx" LEFT "\t\t", "$ h|x", 1},
    };
    static const char *const same[] = {"same", "same", NULL};
    static const char *const lengthy[] = {"w" TEN TEN TEN TEN TEN TEN TEN TEN, "w2", NULL};

    check_cases(cases, COUNT(cases));
    console_begin();
    console_type("h\t\t");
    check_text("the list is below the line", terminal_row(&console.terminal, 1),
               "help     halt     history");
    check_text("the line is below the list", terminal_row(&console.terminal, 2), "$ h");
    check_text("the old line stays above", terminal_row(&console.terminal, 0), "$ h");
    console_begin();
    console_type("m\t\t");
    check_screen("a Tab that put text in arms the list", "$ mem|");
    check_text("and the next one lists", terminal_row(&console.terminal, 1), "mem      memory/");
    console_begin();
    console.words = same;
    console_type("s\t");
    check_screen("the same word twice is one", "$ same |");
    console_begin();
    console.words = lengthy;
    console_type("w\t\t");
    check_number("words wider than the screen do not wrap", console.terminal.faults, 0);
    check_text("they have a row each", terminal_row(&console.terminal, 2), "w2");
}

static void test_completion_limits(void)
{
    static const struct lineedit_ops plain = {console_write, NULL};
    static char names[60][8];
    static const char *words[COUNT(names) + 1];

    for (size_t i = 0; i < COUNT(names); i++) {
        snprintf(names[i], sizeof(names[i]), "word%02zu", i);
        words[i] = names[i];
    }
    console_begin();
    console.words = words;
    console_type("w\t\t");
    check_screen("sixty words are listed", "$ word|");
    check_text("ten fill a row", terminal_row(&console.terminal, 1),
               "word00  word01  word02  word03  word04  word05  word06  word07  word08  word09");
    check_text("in six rows", terminal_row(&console.terminal, 6),
               "word50  word51  word52  word53  word54  word55  word56  word57  word58  word59");
    check_number("no row wraps", console.terminal.faults, 0);

    console_begin();
    for (int i = 0; i < LINEEDIT_MAX - 3; i++)
        console_type("x");
    console_type(" tr\t");
    check_number("a word that does not fit is not put in", (long)console.editor.length,
                 LINEEDIT_MAX);
    check_number("but rings", console.terminal.bells, 1);

    console_begin();
    lineedit_init(&console.editor, &plain, &console, PROMPT);
    lineedit_feed(&console.editor, '\t');
    check_number("without a completer Tab rings", console.terminal.bells, 1);
}

static void test_line_ends(void)
{
    console_begin();
    console_type("one\rtwo\nthree\r\nfour\n");
    check_number("CR, LF and CRLF end a line once", console.lines, 4);
    check_text("the last line is handed over", console.last, "four");
    console_type("\r\r\n\n");
    check_number("empty lines count", console.lines, 7);
    check_text("an empty line is handed over", console.last, "");
    console_begin();
    console_type("help" LEFT LEFT "\r");
    check_text("Enter in the middle takes the whole line", console.last, "help");
    check_text("Enter leaves the line on the screen", terminal_row(&console.terminal, 0), "$ help");
    check_screen("the new prompt is below", "$ |");

    console_begin();
    lineedit_feed(&console.editor, 'x');
    check_number("a byte asks for more", lineedit_feed(&console.editor, 'y'), LINEEDIT_MORE);
    check_number("CR hands the line over", lineedit_feed(&console.editor, '\r'), LINEEDIT_LINE);
    check_number("LF after CR asks for more", lineedit_feed(&console.editor, '\n'), LINEEDIT_MORE);
    check_text("and the line is still there", lineedit_line(&console.editor), "xy");
    lineedit_feed(&console.editor, 'z');
    check_screen("a byte without a start starts a line", "$ z|");
}

static void test_control(void)
{
    console_begin();
    console_type("abc" LEFT "\003");
    check_number("Ctrl-C interrupts", console.interrupts, 1);
    check_text("Ctrl-C shows after the line", terminal_row(&console.terminal, 0), "$ abc^C");
    check_text("Ctrl-C shows one new prompt", console.output,
               "$ abc\b"
               "c^C\r\n$ ");
    check_text("Ctrl-C drops the line", lineedit_line(&console.editor), "");
    console_begin();
    console_type(TEN TEN TEN TEN TEN TEN TEN "1234567\003");
    check_number("Ctrl-C at the edge does not wrap", console.terminal.faults, 0);

    console_begin();
    console_type("\004");
    check_number("Ctrl-D on an empty line is the end", console.ends, 1);
    console_type("x\177\004");
    check_number("also on a line made empty", console.ends, 2);
    console_type("x\004");
    check_number("but not on any other", console.ends, 2);

    console_begin();
    console_type("one\rabc" LEFT "\014");
    check_screen("Ctrl-L keeps the line", "$ ab|c");
    check_number("Ctrl-L clears the screen", console.terminal.clears, 1);
    check_number("and puts the line on top", console.terminal.row, 0);

    console_begin();
    console_type_byte(0);
    check_screen("NUL does nothing", "$ |");
}

/* Sequences that mean nothing here leave no trace. */
static void test_sequences(void)
{
    static const struct screen_case cases[] = {
        {"F1 of xterm", "a" ESC "OPb", "$ ab|", 0},
        {"F5 of xterm", "a" ESC "[15~b", "$ ab|", 0},
        {"F1 of the Linux console", "a" ESC "[[Ab", "$ ab|", 0},
        {"Insert, Page Up, Page Down", "a" ESC "[2~" ESC "[5~" ESC "[6~b", "$ ab|", 0},
        {"Shift-Tab", "a" ESC "[Zb", "$ ab|", 0},
        {"a pasted text in brackets", ESC "[200~ab" ESC "[201~", "$ ab|", 0},
        {"a cursor report", "a" ESC "[24;80Rb", "$ ab|", 0},
        {"a device report", "a" ESC "[?1;2cb", "$ ab|", 0},
        {"a private arrow", "a" ESC "[?Db", "$ ab|", 0},
        {"an arrow with too many parameters", "a" ESC "[1;5;7Db", "$ ab|", 0},
        {"an intermediate byte", "a" ESC "[1 Db", "$ ab|", 0},
        {"a huge parameter", "a" ESC "[" TEN TEN TEN TEN "~b", "$ ab|", 0},
        {"a sequence longer than a line",
         "a" ESC "[" TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN
             TEN TEN TEN TEN TEN TEN ";;;;;;;;;;~b",
         "$ ab|", 0},
        {"a colour report ended by BEL", "a" ESC "]11;rgb:00/00/00\ab", "$ ab|", 0},
        {"a colour report ended by ST", "a" ESC "]11;rgb:00/00/00" ESC "\\b", "$ ab|", 0},
        {"a device control string", "a" ESC "P1$r0m" ESC "\\b", "$ ab|", 0},
        {"bytes above ASCII in a string", "a" ESC "]0;\303\244\ab", "$ ab|", 0},
        {"a character set", "a" ESC "(Bb", "$ ab|", 0},
        {"an Alt key without meaning", "a" ESC "zb", "$ ab|", 0},
        {"ESC twice, then an arrow", "ab" ESC ESC "[D", "$ a|b", 0},
        {"ESC starts a sequence anew", "ab" ESC "[1" ESC "[D", "$ a|b", 0},
        {"0x7f in a sequence", "ab" ESC "[\177D", "$ a|b", 0},
        {"Ctrl-C breaks off a sequence", "ab" ESC "[1\003", "$ |", 0},
        {"Ctrl-U breaks off a string", "ab" ESC "]11\025", "$ |", 0},
        {"a character above ASCII rings once", "a\303\244b", "$ ab|", 1},
        {"two with ASCII between them ring twice", "\303\244x\342\202\254", "$ x|", 2},
        {"0x80 and 0xff", "\200a\377", "$ a|", 2},
        {"a byte above ASCII breaks off a sequence", "ab" ESC "[\303D", "$ abD|", 1},
    };

    check_cases(cases, COUNT(cases));
    console_begin();
    console_type("abc" ESC "[1\r");
    check_text("Enter breaks off a sequence", console.last, "abc");
}

/* A program at the other end of the line sees the text it sent and nothing else. */
static void test_plain_echo(void)
{
    char typed[LINEEDIT_COLUMNS];
    char expected[2 * LINEEDIT_COLUMNS];

    console_begin();
    console_type("mem dump 0x10\r");
    check_text("plain text is echoed as it is", console.output, "$ mem dump 0x10\r\n$ ");
    console_begin();
    console_type("ab\177");
    check_text("backspace needs no escape sequence", console.output, "$ ab\b \b");
    console_begin();
    console_type("abc" LEFT LEFT "x\r");
    check_text("nor does a short insertion", console.output, "$ abc\b\bxbc\b\b\r\n$ ");
    console_begin();
    memset(typed, 'x', sizeof(typed));
    typed[LINEEDIT_COLUMNS - 1 - strlen(PROMPT)] = '\0';
    snprintf(expected, sizeof(expected), "%s%s\r\n%s", PROMPT, typed, PROMPT);
    console_type(typed);
    console_type("\r");
    check_text("up to the edge of the screen", console.output, expected);
}

static void test_long_lines(void)
{
    console_begin();
    for (int i = 0; i < 26; i++)
        console_type(TEN);
    check_number("a line holds 255 bytes", (long)console.editor.length, 255);
    check_number("each further byte rings", console.terminal.bells, 5);
    check_number("a long line does not wrap", console.terminal.row, 0);
    check_number("nor touch the last column", console.terminal.faults, 0);
    check_text("the end of the line is in sight",
               terminal_row(&console.terminal, 0) + console.terminal.column - 5, "01234");
    console_type("\001");
    check_screen("Home scrolls to the start", "$ |" TEN TEN TEN TEN TEN TEN TEN "0123456");
    for (int i = 0; i < 100; i++)
        console_type(RIGHT);
    check_number("the cursor is in the row after moving right",
                 console.terminal.cells[0][console.terminal.column], '0');
    check_number("the character before it is shown too",
                 console.terminal.cells[0][console.terminal.column - 1], '9');
    console_type("X");
    check_number("inserting in a full line rings", console.terminal.bells, 6);
    console_type("\013");
    for (int i = 0; i < 23; i++)
        console_type("\177");
    check_screen("a line that fits again is shown whole",
                 "$ " TEN TEN TEN TEN TEN TEN TEN "0123456|");
    console_type("\031\r");
    check_number("nothing was lost", (long)strlen(console.last), 232);
    check_number("and nothing wrapped", console.terminal.faults, 0);
}

static void test_long_prompt(void)
{
    static const char prompt[] = TEN TEN TEN TEN TEN TEN TEN TEN TEN "> ";

    console_begin();
    lineedit_init(&console.editor, &console_ops, &console, prompt);
    terminal_reset(&console.terminal);
    console_type("some text that is longer than what is left\001");
    check_screen("a prompt too long is cut", TEN TEN TEN TEN TEN TEN "|some text that is l");
    check_number("and does not wrap", console.terminal.faults, 0);
}

static void test_hide(void)
{
    console_begin();
    console_type("some text" LEFT);
    lineedit_hide(&console.editor);
    check_screen("hide erases the row", "|");
    lineedit_hide(&console.editor);
    console_write(&console, "log: hello\r\n", 12);
    lineedit_show(&console.editor);
    check_screen("show draws it again", "$ some tex|t");
    check_text("the log is above", terminal_row(&console.terminal, 0), "log: hello");
    lineedit_show(&console.editor);
    check_screen("show twice is as good as once", "$ some tex|t");

    lineedit_hide(&console.editor);
    console_type("x");
    check_screen("a byte shows the line again", "$ some texx|t");
    console_type("\r");
    lineedit_hide(&console.editor);
    console_type("\n");
    check_screen("so does the LF of a CRLF", "$ |");

    console_begin();
    lineedit_feed(&console.editor, '\r');
    console.output_length = 0;
    console.output[0] = '\0';
    lineedit_hide(&console.editor);
    lineedit_show(&console.editor);
    check_text("without a line hide and show do nothing", console.output, "");
    lineedit_start(&console.editor);
    lineedit_start(&console.editor);
    check_text("start twice is as good as once", console.output, "$ ");

    console_begin();
    console_type(SOME_LINES "\022trace");
    lineedit_hide(&console.editor);
    lineedit_show(&console.editor);
    check_screen("a search is hidden and shown", FOUND "trace': |trace on");
}

/* ---- Random bytes ---- */

static uint64_t random_state;

static uint32_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

/* Uniform bytes half of the time; else mostly text, keys and sequences, so that lines grow long. */
static unsigned char random_byte(uint32_t turn)
{
    static const char keys[] = "\t\t\002\006\001\005\024\013\025\027\031\020\016\022\177\b\007\014";
    static const char parts[] = "[[[OODCABHF~13457;5bdf]P";
    static unsigned char before;
    uint32_t random = random_next();
    uint32_t choice = random % 100;

    random >>= 8;
    if (turn % 20000 < 10000)
        before = (unsigned char)random;
    else if (before == 033 || before == '[' || before == ';')
        before = (unsigned char)parts[random % (sizeof(parts) - 1)];
    else if (choice < 70)
        before = (unsigned char)("hmt "[random % 4] + (choice < 10));
    else if (choice < 85)
        before = (unsigned char)keys[random % (sizeof(keys) - 1)];
    else if (choice < 98)
        before = 033;
    else
        before = (unsigned char)(random % 32 == 0 ? '\r' : random);
    return before;
}

/* What is wrong with the editor's state, or NULL. */
static const char *fault_in_state(const struct lineedit *le)
{
    if (le->length > LINEEDIT_MAX)
        return "the line is too long";
    if (le->cursor > le->length)
        return "the cursor is outside the line";
    if (strlen(le->line) != le->length)
        return "the NUL is not at the end of the line";
    for (size_t i = 0; i < le->length; i++) {
        if (le->line[i] < ' ' || le->line[i] >= 0x7f)
            return "the line holds a byte that is not printable";
    }
    if (le->killed_length > LINEEDIT_MAX || le->history_count > LINEEDIT_HISTORY ||
        le->history_age > le->history_count || le->search_age > le->history_count ||
        le->query_length > LINEEDIT_QUERY_MAX || le->query[le->query_length] != '\0')
        return "a length is out of range";
    return NULL;
}

/* What is wrong with the screen, or NULL: around the cursor stands the line, after the prompt. */
static const char *fault_on_screen(const struct lineedit *le, const struct terminal *t)
{
    const char *row = t->cells[t->row];
    size_t column = (size_t)t->column;
    size_t prefix = le->searching ? strlen(FOUND) + le->query_length + 3 : strlen(PROMPT);
    size_t first = prefix + le->cursor - column; /* the byte of the line shown first */

    if (t->faults != 0)
        return "the terminal got what it should not";
    if (strncmp(row, le->searching ? FOUND : PROMPT, le->searching ? strlen(FOUND) : 2) != 0)
        return "the row does not begin with the prompt";
    if (column < prefix || first > le->cursor)
        return "the cursor is not in the text";
    size_t width = LINEEDIT_COLUMNS - 1 - prefix;
    size_t shown = le->length - first < width ? le->length - first : width;
    if (memcmp(row + prefix, le->line + first, shown) != 0)
        return "the row does not show the line";
    for (size_t i = prefix + shown; i < LINEEDIT_COLUMNS; i++) {
        if (row[i] != ' ')
            return "something is left behind after the line";
    }
    return NULL;
}

static void test_random(void)
{
    const uint32_t turns = 5000000;
    size_t longest = 0;
    const char *fault = NULL;
    uint32_t turn;

    console_begin();
    random_state = 0x9e3779b97f4a7c15;
    for (turn = 0; turn < turns && fault == NULL; turn++) {
        console.output_length = 0;
        if (random_next() % 1000 == 0)
            lineedit_hide(&console.editor);
        console_type_byte(random_byte(turn));
        if (console.editor.length > longest)
            longest = console.editor.length;
        fault = fault_in_state(&console.editor);
        if (fault == NULL)
            fault = fault_on_screen(&console.editor, &console.terminal);
    }
    check_text("five million random bytes do no harm", fault == NULL ? "" : fault, "");
    if (fault != NULL)
        printf("#   after byte %u, screen \"%s\"\n", (unsigned)turn, screen_line());
    check_number("among them were lines of full length", (long)longest, LINEEDIT_MAX);
    check_report(console.lines > 1000 && console.interrupts > 100 && console.ends > 0,
                 "and lines, interrupts and ends");
}

int main(void)
{
    printf("TAP version 13\n");
    test_editing();
    test_moves();
    test_killing();
    test_history();
    test_search();
    test_completion();
    test_completion_limits();
    test_line_ends();
    test_control();
    test_sequences();
    test_plain_echo();
    test_long_lines();
    test_long_prompt();
    test_hide();
    test_random();
    printf("1..%d\n", checks);
    return failures == 0 ? 0 : 1;
}
