/* See console.h. */
#include "console/console.h"
#include "console/command.h"
#include "console/lineedit.h"
#include "core/printk.h"
#include "core/spinlock.h"
#include "drivers/uart.h"
#include "lib/printf.h"
#include "lib/string.h"

#define PROMPT "kos> "

extern const struct command commands_begin[], commands_end[];

static struct lineedit editor;
static struct spinlock console_lock;
static bool editing; /* the prompt is on the screen */

static void editor_write(void *ctx, const char *bytes, size_t n)
{
    (void)ctx;
    uart_write(&uart_console, bytes, n);
}

static bool has_space(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (text[i] == ' ')
            return true;
    return false;
}

/* The first word completes to a command; after that the commands' own words are not known. */
static void editor_complete(void *ctx, const char *line, size_t cursor,
                            void (*add)(void *arg, const char *word), void *arg)
{
    (void)ctx;
    size_t start = 0;
    while (start < cursor && line[start] == ' ')
        start++;
    bool after_help = !strncmp(line + start, "help ", 5);
    if (!after_help && has_space(line + start, cursor - start))
        return;
    for (const struct command *c = commands_begin; c < commands_end; c++)
        add(arg, c->name);
}

static const struct lineedit_ops editor_ops = {editor_write, editor_complete};

static void emit(const char *text, size_t n)
{
    SPIN_GUARD(&console_lock);
    bool shown = editing;
    if (shown)
        lineedit_hide(&editor);
    uart_write_text(&uart_console, text, n);
    if (shown)
        lineedit_show(&editor);
}

void cprintf(const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    size_t n = MIN(vformat(text, sizeof(text), fmt, ap), sizeof(text) - 1);
    va_end(ap);
    emit(text, n);
}

bool command_expected(const char *word, const char *expected)
{
    cprintf("'%s': expected %s\n", word, expected);
    return true;
}

bool command_extra(int argc, char **argv, int max)
{
    return argc > max + 1 && command_expected(argv[max + 1], "the end of the line");
}

size_t command_join(char *buf, size_t cap, int n, char **words)
{
    size_t len = 0;
    buf[0] = 0;
    for (int i = 0; i < n; i++)
        len += MIN(format(buf + len, cap - len, "%s%s", i ? " " : "", words[i]), cap - len - 1);
    return len;
}

bool command_number(const char *word, const char *what, u64 min, u64 max, u64 *value)
{
    if (string_parse_u64(word, value) && *value >= min && *value <= max)
        return true;
    if (max == UINT64_MAX)
        cprintf("'%s': expected %s: a number such as 4096, 0x1000 or 4K\n", word, what);
    else
        cprintf("'%s': expected %s, %lu to %lu\n", word, what, min, max);
    return false;
}

static int split_words(char *line, char **words)
{
    int n = 0;
    while (n < COMMAND_WORDS) {
        while (*line == ' ')
            line++;
        if (!*line)
            break;
        words[n++] = line;
        while (*line && *line != ' ')
            line++;
        if (*line)
            *line++ = 0;
    }
    return n;
}

static void run_line(const char *typed)
{
    char line[LINEEDIT_MAX + 1];
    char *words[COMMAND_WORDS];
    string_copy(line, typed, sizeof(line));
    int n = split_words(line, words);
    if (!n)
        return;
    for (const struct command *c = commands_begin; c < commands_end; c++) {
        if (strcmp(c->name, words[0]))
            continue;
        if (!c->run(n, words))
            cprintf("usage: %s%s%s\n", c->name, *c->usage ? " " : "", c->usage);
        return;
    }
    cprintf("'%s' is no command; 'help' lists them\n", words[0]);
}

static void prompt_show(void)
{
    SPIN_GUARD(&console_lock);
    lineedit_start(&editor);
    editing = true;
}

static enum lineedit_event editor_feed(u8 byte)
{
    SPIN_GUARD(&console_lock);
    enum lineedit_event event = lineedit_feed(&editor, byte);
    if (event == LINEEDIT_LINE || event == LINEEDIT_EOF)
        editing = false;
    return event;
}

bool console_poll(void)
{
    int byte = uart_read(&uart_console);
    if (byte < 0)
        return false;
    switch (editor_feed((u8)byte)) {
    case LINEEDIT_LINE:
        run_line(lineedit_line(&editor));
        prompt_show();
        break;
    case LINEEDIT_EOF: /* there is nowhere to go: a fresh prompt */
        prompt_show();
        break;
    case LINEEDIT_MORE:
    case LINEEDIT_INTERRUPT:
        break;
    }
    return true;
}

void console_init(void)
{
    lineedit_init(&editor, &editor_ops, NULL, PROMPT);
    printk_set_sink(emit);
    prompt_show();
}

COMMAND(help, "[command]", "lists the commands, or says more about one")
{
    if (command_extra(argc, argv, 1))
        return true;
    for (const struct command *c = commands_begin; c < commands_end; c++) {
        char left[64];
        if (argc > 1 && strcmp(argv[1], c->name))
            continue;
        format(left, sizeof(left), "%s %s", c->name, c->usage);
        cprintf("  %-34s %s\n", left, c->help);
        if (argc > 1)
            return true;
    }
    if (argc > 1)
        return command_expected(argv[1], "the name of a command; 'help' lists them");
    cprintf("Tab completes, arrows edit and recall, Ctrl-R searches, Ctrl-C drops the line.\n");
    return true;
}
