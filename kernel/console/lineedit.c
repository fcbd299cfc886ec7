/*
 * Line editor of the serial console: keys, editing and display.
 *
 * A byte passes three stages. The decoder turns it, alone or at the end of an escape sequence,
 * into a key; arrows and their kin become the control key that does the same. The key's action
 * then changes only the text and the cursor. Last, lineedit_refresh() composes the row the user
 * ought to see and sends what it takes to turn the row shown into it. Typing at the end of the
 * line thus echoes just the characters, and short moves and erasures use \b and blanks, so that a
 * terminal that knows no escape sequences is served as far as it can be.
 *
 * The row never reaches the last column, so nothing wraps; a longer line is scrolled in it, half
 * a window at a time, so that most characters still cost a single byte.
 *
 * Invariants: cursor <= length <= LINEEDIT_MAX and line[length] is NUL; the line, the kill buffer
 * and the history hold printable ASCII only; scroll <= cursor; `shown` is what stands in the
 * terminal's row, with shown.cursor <= shown.length < LINEEDIT_COLUMNS between two calls.
 */
#include "console/lineedit_priv.h"
#include "lib/string.h"

enum {
    LINEEDIT_PREFIX_MAX = 60, /* columns a prompt may take */
    LINEEDIT_SHORT_MOVE = 4,  /* columns up to which an escape sequence is not worth it */
    LINEEDIT_PARAM_MAX = 999,
};

enum lineedit_state {
    LINEEDIT_STATE_GROUND,
    LINEEDIT_STATE_ESCAPE,   /* after ESC */
    LINEEDIT_STATE_SEQUENCE, /* after ESC [ or ESC O: parameters, then a final byte */
    LINEEDIT_STATE_ONE_MORE, /* one byte to swallow */
    LINEEDIT_STATE_STRING,   /* after ESC ] and its like: anything up to a control byte */
};

/* ---- Display ---- */

void lineedit_write_bytes(struct lineedit *le, const char *bytes, size_t n)
{
    if (n > 0)
        le->ops->write(le->ctx, bytes, n);
}

void lineedit_write_text(struct lineedit *le, const char *text)
{
    lineedit_write_bytes(le, text, strlen(text));
}

void lineedit_ring_bell(struct lineedit *le)
{
    lineedit_write_bytes(le, "\a", 1);
}

/* ESC [ count final, for a count below 100. */
static void lineedit_write_escape(struct lineedit *le, size_t count, char final)
{
    char bytes[] = {'\033', '[', (char)('0' + count / 10), (char)('0' + count % 10), final};

    lineedit_write_bytes(le, bytes, sizeof(bytes));
}

static void lineedit_row_move(struct lineedit *le, size_t column)
{
    struct lineedit_row *row = &le->shown;
    size_t left = column < row->cursor ? row->cursor - column : 0;
    size_t right = column > row->cursor ? column - row->cursor : 0;

    if (left > 0 && column == 0)
        lineedit_write_bytes(le, "\r", 1);
    else if (left > LINEEDIT_SHORT_MOVE)
        lineedit_write_escape(le, left, 'D');
    else if (right > LINEEDIT_SHORT_MOVE)
        lineedit_write_escape(le, right, 'C');
    else if (left > 0)
        lineedit_write_bytes(le, "\b\b\b\b", left);
    else
        lineedit_write_bytes(le, row->cells + row->cursor, right);
    row->cursor = column;
}

/* Blanks the n cells from the cursor on, which are the last of the row. */
static void lineedit_row_erase(struct lineedit *le, size_t n)
{
    if (n > LINEEDIT_SHORT_MOVE) {
        lineedit_write_text(le, "\033[K");
    } else {
        lineedit_write_bytes(le, "    ", n);
        lineedit_write_bytes(le, "\b\b\b\b", n);
    }
}

/* Turns the row shown into the row wanted. */
static void lineedit_row_apply(struct lineedit *le, const struct lineedit_row *want)
{
    struct lineedit_row *shown = &le->shown;
    size_t old_length = shown->length;
    size_t first = 0;
    size_t end = want->length;

    while (first < end && first < old_length && want->cells[first] == shown->cells[first])
        first++;
    while (end > first && want->length == old_length &&
           want->cells[end - 1] == shown->cells[end - 1])
        end--;
    if (first < end || want->length < old_length) {
        lineedit_row_move(le, first);
        lineedit_write_bytes(le, want->cells + first, end - first);
        shown->cursor += end - first;
        if (want->length < old_length)
            lineedit_row_erase(le, old_length - want->length);
    }
    memcpy(shown->cells, want->cells, want->length);
    shown->length = want->length;
    lineedit_row_move(le, want->cursor);
}

static void lineedit_row_append(struct lineedit_row *row, const char *text, size_t limit)
{
    while (*text != '\0' && row->length < limit)
        row->cells[row->length++] = *text++;
}

/* Keeps the cursor within the width; a line that fits is shown from its beginning. */
static void lineedit_scroll(struct lineedit *le, size_t width)
{
    if (le->length <= width)
        le->scroll = 0;
    else if (le->cursor < le->scroll || le->cursor > le->scroll + width)
        le->scroll = le->cursor > width / 2 ? le->cursor - width / 2 : 0;
}

/* Draws the line; the only place that does. */
void lineedit_refresh(struct lineedit *le)
{
    struct lineedit_row row = {.length = 0};

    if (le->searching) {
        lineedit_row_append(&row, "(reverse-i-search)`", LINEEDIT_PREFIX_MAX);
        lineedit_row_append(&row, le->query, LINEEDIT_PREFIX_MAX);
        lineedit_row_append(&row, "': ", LINEEDIT_PREFIX_MAX);
    } else {
        lineedit_row_append(&row, le->prompt, LINEEDIT_PREFIX_MAX);
    }
    lineedit_scroll(le, LINEEDIT_COLUMNS - 1 - row.length);
    row.cursor = row.length + le->cursor - le->scroll;
    lineedit_row_append(&row, le->line + le->scroll, LINEEDIT_COLUMNS - 1);
    lineedit_row_apply(le, &row);
}

/* Forgets what is shown: the cursor now stands at the start of an empty row. */
static void lineedit_row_forget(struct lineedit *le)
{
    le->shown.length = 0;
    le->shown.cursor = 0;
}

void lineedit_leave_row(struct lineedit *le)
{
    lineedit_write_text(le, "\r\n");
    lineedit_row_forget(le);
}

static void lineedit_clear_screen(struct lineedit *le)
{
    lineedit_write_text(le, "\033[H\033[2J");
    lineedit_row_forget(le);
}

/* ---- Editing ---- */

void lineedit_set_text(struct lineedit *le, const char *text, size_t cursor)
{
    size_t length = strlen(text);

    if (length > LINEEDIT_MAX)
        length = LINEEDIT_MAX;
    memcpy(le->line, text, length);
    le->line[length] = '\0';
    le->length = length;
    le->cursor = cursor < length ? cursor : length;
}

bool lineedit_insert_text(struct lineedit *le, const char *text, size_t n)
{
    if (n > LINEEDIT_MAX - le->length) {
        lineedit_ring_bell(le);
        return false;
    }
    char *at = le->line + le->cursor;
    memmove(at + n, at, le->length - le->cursor + 1);
    memcpy(at, text, n);
    le->length += n;
    le->cursor += n;
    return true;
}

void lineedit_delete_range(struct lineedit *le, size_t start, size_t end)
{
    memmove(le->line + start, le->line + end, le->length - end + 1);
    le->length -= end - start;
    le->cursor = start;
}

static void lineedit_delete_left(struct lineedit *le)
{
    if (le->cursor > 0)
        lineedit_delete_range(le, le->cursor - 1, le->cursor);
    else
        lineedit_ring_bell(le);
}

static void lineedit_delete_right(struct lineedit *le)
{
    if (le->cursor < le->length)
        lineedit_delete_range(le, le->cursor, le->cursor + 1);
    else
        lineedit_ring_bell(le);
}

static void lineedit_move_home(struct lineedit *le)
{
    le->cursor = 0;
}

static void lineedit_move_end(struct lineedit *le)
{
    le->cursor = le->length;
}

static void lineedit_move_left(struct lineedit *le)
{
    if (le->cursor > 0)
        le->cursor--;
}

static void lineedit_move_right(struct lineedit *le)
{
    if (le->cursor < le->length)
        le->cursor++;
}

/* Swaps the characters left and right of the cursor, at the end of the line the last two. */
static void lineedit_swap_chars(struct lineedit *le)
{
    if (le->cursor == 0 || le->length < 2) {
        lineedit_ring_bell(le);
        return;
    }
    if (le->cursor == le->length)
        le->cursor--;
    char left = le->line[le->cursor - 1];
    le->line[le->cursor - 1] = le->line[le->cursor];
    le->line[le->cursor] = left;
    le->cursor++;
}

/* ---- Keys ---- */

static int lineedit_decode_escape(struct lineedit *le, unsigned char byte)
{
    le->state = LINEEDIT_STATE_GROUND;
    switch (byte) {
    case '[':
    case 'O':
        le->state = LINEEDIT_STATE_SEQUENCE;
        le->odd = false;
        le->param = 0;
        le->params[0] = le->params[1] = 0;
        return LINEEDIT_KEY_NONE;
    case 'b':
    case 'B':
        return LINEEDIT_KEY_WORD_LEFT;
    case 'f':
    case 'F':
        return LINEEDIT_KEY_WORD_RIGHT;
    case 'd':
    case 'D':
        return LINEEDIT_KEY_KILL_WORD_RIGHT;
    case LINEEDIT_KEY_BACKSPACE:
        return LINEEDIT_KEY_KILL_WORD_LEFT;
    default:
        if (byte == ']' || byte == 'P' || byte == 'X' || byte == '^' || byte == '_')
            le->state = LINEEDIT_STATE_STRING;
        else if (byte == '(' || byte == ')' || byte == '#' || byte == '%')
            le->state = LINEEDIT_STATE_ONE_MORE;
        return LINEEDIT_KEY_NONE;
    }
}

/* The key of a whole sequence; the second parameter, less one, is a mask of Shift, Alt, Ctrl. */
static int lineedit_decode_final(const struct lineedit *le, unsigned char final)
{
    unsigned number = final == '~' ? le->params[0] : 0;
    bool by_word = le->params[1] > 0 && ((le->params[1] - 1) & 6) != 0;

    if (final == 'A')
        return LINEEDIT_CTRL('P');
    if (final == 'B')
        return LINEEDIT_CTRL('N');
    if (final == 'C')
        return by_word ? LINEEDIT_KEY_WORD_RIGHT : LINEEDIT_CTRL('F');
    if (final == 'D')
        return by_word ? LINEEDIT_KEY_WORD_LEFT : LINEEDIT_CTRL('B');
    if (final == 'H' || number == 1 || number == 7)
        return LINEEDIT_CTRL('A');
    if (final == 'F' || number == 4 || number == 8)
        return LINEEDIT_CTRL('E');
    return number == 3 ? LINEEDIT_KEY_DELETE : LINEEDIT_KEY_NONE;
}

static int lineedit_decode_sequence(struct lineedit *le, unsigned char byte)
{
    if (byte >= '0' && byte <= '9' && le->param < 2) {
        unsigned value = le->params[le->param] * 10u + (byte - '0');
        le->params[le->param] = (uint16_t)(value < LINEEDIT_PARAM_MAX ? value : LINEEDIT_PARAM_MAX);
    } else if (byte == ';' && le->param < 2) {
        le->param++;
    } else if (byte < '@') {
        le->odd = true;
    } else if (byte == '[') {
        le->state = LINEEDIT_STATE_ONE_MORE; /* ESC [ [ A is F1 on the Linux console */
    } else if (byte != 0x7f) {
        le->state = LINEEDIT_STATE_GROUND;
        return le->odd ? LINEEDIT_KEY_NONE : lineedit_decode_final(le, byte);
    }
    return LINEEDIT_KEY_NONE;
}

/*
 * The key that the byte completes, if any. A control byte is never part of a sequence: it ends
 * the one under way, so that Enter and Ctrl-C work whatever came before.
 */
static int lineedit_decode_byte(struct lineedit *le, unsigned char byte)
{
    unsigned char state = le->state;

    if (byte < ' ') {
        le->state = byte == LINEEDIT_KEY_ESCAPE ? LINEEDIT_STATE_ESCAPE : LINEEDIT_STATE_GROUND;
        bool part = byte == LINEEDIT_KEY_ESCAPE || (state == LINEEDIT_STATE_STRING && byte == '\a');
        return part ? LINEEDIT_KEY_NONE : byte;
    }
    switch (state) {
    case LINEEDIT_STATE_ESCAPE:
        return lineedit_decode_escape(le, byte);
    case LINEEDIT_STATE_SEQUENCE:
        return lineedit_decode_sequence(le, byte);
    case LINEEDIT_STATE_ONE_MORE:
        le->state = LINEEDIT_STATE_GROUND;
        return LINEEDIT_KEY_NONE;
    case LINEEDIT_STATE_STRING:
        return LINEEDIT_KEY_NONE;
    default:
        return byte;
    }
}

/* Only ASCII is taken. One bell for a run of other bytes: it is probably one character. */
static void lineedit_refuse_byte(struct lineedit *le, unsigned char before)
{
    if (le->state == LINEEDIT_STATE_STRING)
        return;
    le->state = LINEEDIT_STATE_GROUND;
    if (before < 0x80)
        lineedit_ring_bell(le);
}

static void (*const lineedit_actions[LINEEDIT_KEY_COUNT])(struct lineedit *le) = {
    [LINEEDIT_CTRL('A')] = lineedit_move_home,
    [LINEEDIT_CTRL('B')] = lineedit_move_left,
    [LINEEDIT_CTRL('D')] = lineedit_delete_right,
    [LINEEDIT_CTRL('E')] = lineedit_move_end,
    [LINEEDIT_CTRL('F')] = lineedit_move_right,
    [LINEEDIT_CTRL('H')] = lineedit_delete_left,
    [LINEEDIT_CTRL('I')] = lineedit_complete_word,
    [LINEEDIT_CTRL('K')] = lineedit_kill_to_end,
    [LINEEDIT_CTRL('L')] = lineedit_clear_screen,
    [LINEEDIT_CTRL('N')] = lineedit_history_newer,
    [LINEEDIT_CTRL('P')] = lineedit_history_older,
    [LINEEDIT_CTRL('R')] = lineedit_search_begin,
    [LINEEDIT_CTRL('T')] = lineedit_swap_chars,
    [LINEEDIT_CTRL('U')] = lineedit_kill_to_start,
    [LINEEDIT_CTRL('W')] = lineedit_kill_argument,
    [LINEEDIT_CTRL('Y')] = lineedit_yank_killed,
    [LINEEDIT_KEY_BACKSPACE] = lineedit_delete_left,
    [LINEEDIT_KEY_DELETE] = lineedit_delete_right,
    [LINEEDIT_KEY_WORD_LEFT] = lineedit_move_word_left,
    [LINEEDIT_KEY_WORD_RIGHT] = lineedit_move_word_right,
    [LINEEDIT_KEY_KILL_WORD_LEFT] = lineedit_kill_word_left,
    [LINEEDIT_KEY_KILL_WORD_RIGHT] = lineedit_kill_word_right,
};

static enum lineedit_event lineedit_finish(struct lineedit *le, enum lineedit_event event)
{
    if (event == LINEEDIT_INTERRUPT) {
        size_t end = le->shown.length;
        lineedit_row_move(le, end < LINEEDIT_COLUMNS - 3 ? end : LINEEDIT_COLUMNS - 3);
        lineedit_write_text(le, "^C");
    }
    lineedit_leave_row(le);
    le->active = false;
    if (event == LINEEDIT_LINE)
        lineedit_history_add(le);
    if (event == LINEEDIT_INTERRUPT)
        lineedit_start(le);
    return event;
}

static enum lineedit_event lineedit_apply_key(struct lineedit *le, int key)
{
    enum lineedit_event event = LINEEDIT_MORE;

    le->turn++;
    if (le->searching && lineedit_search_key(le, key))
        key = LINEEDIT_KEY_NONE;
    if (key == '\r' || key == '\n')
        event = LINEEDIT_LINE;
    else if (key == LINEEDIT_CTRL('C'))
        event = LINEEDIT_INTERRUPT;
    else if (key == LINEEDIT_CTRL('D') && le->length == 0)
        event = LINEEDIT_EOF;
    else if (lineedit_actions[key] != NULL)
        lineedit_actions[key](le);
    else if (key >= ' ')
        lineedit_insert_text(le, &(char){(char)key}, 1);
    lineedit_refresh(le);
    return event == LINEEDIT_MORE ? event : lineedit_finish(le, event);
}

/* ---- Interface ---- */

void lineedit_init(struct lineedit *le, const struct lineedit_ops *ops, void *ctx,
                   const char *prompt)
{
    memset(le, 0, sizeof(*le));
    le->ops = ops;
    le->ctx = ctx;
    le->prompt = prompt;
    le->turn = 1;
}

void lineedit_start(struct lineedit *le)
{
    if (!le->active) {
        le->active = true;
        le->hidden = true;
        le->searching = false;
        le->history_age = 0;
        lineedit_set_text(le, "", 0);
        lineedit_row_forget(le);
    }
    lineedit_show(le);
}

enum lineedit_event lineedit_feed(struct lineedit *le, unsigned char byte)
{
    unsigned char before = le->previous;

    le->previous = byte;
    lineedit_show(le);
    if (before == '\r' && byte == '\n')
        return LINEEDIT_MORE; /* the second half of CRLF */
    lineedit_start(le);
    if (byte >= 0x80) {
        lineedit_refuse_byte(le, before);
        return LINEEDIT_MORE;
    }
    int key = lineedit_decode_byte(le, byte);
    return key == LINEEDIT_KEY_NONE ? LINEEDIT_MORE : lineedit_apply_key(le, key);
}

const char *lineedit_line(const struct lineedit *le)
{
    return le->line;
}

void lineedit_hide(struct lineedit *le)
{
    const struct lineedit_row nothing = {.length = 0};

    if (!le->active || le->hidden)
        return;
    lineedit_row_apply(le, &nothing);
    le->hidden = true;
}

void lineedit_show(struct lineedit *le)
{
    if (!le->active || !le->hidden)
        return;
    le->hidden = false;
    lineedit_refresh(le);
}
