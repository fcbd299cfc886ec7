/* Console commands that show clients and the calls that there are. See also call_console.c. */
#include "console/command.h"
#include "lib/printf.h"
#include "rpc/calls.h"

#define COLUMNS 80

/* ---- clients ---- */

static void print_client(const struct client *c)
{
    struct client_info i;
    char name[CLIENT_NAME];
    client_describe(c, &i);
    client_name_format(c, name);
    cprintf("%3u %-23s %5u %8lu %7lu %6lu %7lu %6lu %6lu\n", i.id, name, i.rings, i.calls,
            i.refused, i.blocks, i.pages, i.tables, i.mapped);
}

COMMAND(clients, "", "who is connected, and what they own")
{
    if (command_extra(argc, argv, 0))
        return true;
    cprintf(" id name                    rings    calls refused blocks  frames tables mapped\n");
    for (u64 id = 0; id < MAX_CLIENTS; id++)
        if (client_get(id))
            print_client(client_get(id));
    return true;
}

/* ---- calls ---- */

static const char *const data_names[] = {[CALL_BYTES] = "bytes",
                                         [CALL_TEXT] = "text",
                                         [CALL_U64S] = "numbers",
                                         [CALL_STRUCT] = "struct"};

/* "buddy_free <addr> <order>": a call as one types it. */
static void format_use(char *buf, size_t cap, const struct call_desc *d)
{
    size_t n = format(buf, cap, "%s", d->name);
    for (u32 i = 0; i < call_arg_count(d) && n < cap; i++)
        n += format(buf + n, cap - n, " <%s>", d->args[i].name);
    if (d->in != CALL_NONE && n < cap)
        format(buf + n, cap - n, " <%s>", data_names[d->in]);
}

static void print_call_line(const struct call_desc *d)
{
    char use[64];
    bool more = d->results[0].type || d->out != CALL_NONE || d->scope == CALL_WIRE;
    const char *before = "-> ";
    format_use(use, sizeof(use), d);
    cprintf("%4u  %-*s", d->number, more ? 36 : 0, use);
    for (u32 i = 0; i < ARRAY_SIZE(d->results) && d->results[i].type; i++, before = ", ")
        cprintf("%s%s", before, d->results[i].name);
    if (d->out != CALL_NONE)
        cprintf("%s%s", before, d->out == CALL_STRUCT ? d->out_struct : data_names[d->out]);
    cprintf("%s\n", d->scope == CALL_WIRE ? "  (wire only)" : "");
}

/* Prints text from column `indent` on, where the cursor is, in lines of that indent. */
static void print_wrapped(int indent, const char *text)
{
    int column = indent;
    while (*text) {
        int n = 0;
        while (text[n] && text[n] != ' ')
            n++;
        if (column > indent && column + 1 + n >= COLUMNS) {
            cprintf("\n%*s", indent, "");
            column = indent;
        }
        bool first = column == indent;
        cprintf("%s%.*s", first ? "" : " ", n, text);
        column += n + !first;
        text += n + (text[n] == ' ');
    }
    cprintf("\n");
}

#define VALUE_INDENT 31

/* Arguments or results; `title` stands before the first. */
static void print_values(const char *title, const struct call_value *values, u32 max)
{
    for (u32 i = 0; i < max && values[i].type; i++) {
        cprintf("  %-10s %-9s %-6s  ", i ? "" : title, values[i].name,
                call_type_name(values[i].type));
        print_wrapped(VALUE_INDENT, values[i].doc);
    }
}

static void print_call(const struct call_desc *d)
{
    char use[64];
    format_use(use, sizeof(use), d);
    cprintf("%s\n  ", use);
    print_wrapped(2, d->doc);
    print_values("arguments", d->args, RPC_ARGS);
    if (d->in != CALL_NONE)
        cprintf("  takes      %s\n", data_names[d->in]);
    print_values("results", d->results, ARRAY_SIZE(d->results));
    if (d->out != CALL_NONE)
        cprintf("  answers    %s%s%s\n", data_names[d->out], *d->out_struct ? " " : "",
                d->out_struct);
    cprintf("  errors     %s\n", *d->errors ? d->errors : "none");
    cprintf("  number     %u%s\n", d->number,
            d->scope == CALL_WIRE ? ", over the wire only: not with 'call'" : "");
}

COMMAND(calls, "[name]", "the calls there are, or one in full")
{
    if (command_extra(argc, argv, 1))
        return true;
    if (argc == 1) {
        for (const struct call_desc *d = calls_begin; d < calls_end; d++)
            print_call_line(d);
        return true;
    }
    const struct call_desc *d = call_by_name(argv[1]);
    if (!d)
        return command_expected(argv[1], "the name of a call; 'calls' lists them");
    print_call(d);
    return true;
}
