/*
 * Line editor: the word at the cursor, to step over, to kill and to complete.
 *
 * Moves and kills take a word to be letters and digits; completion and Ctrl-W, what stands between
 * spaces.
 *
 * The words to complete with come from the complete callback one at a time and are not stored. A
 * first pass over them finds how many there are, the longest beginning they share and the length of
 * the longest; that is all it takes to complete the word. Listing them is a second pass, which
 * knows the column width from the first.
 *
 * Invariants: `common` is NUL-terminated printable ASCII and, once a word was taken, begins with
 * the text being completed; common_length is its length and never more than `longest`.
 */
#include "console/lineedit_priv.h"
#include "lib/string.h"

static bool lineedit_is_word(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static size_t lineedit_find_word_left(const struct lineedit *le)
{
    size_t at = le->cursor;

    while (at > 0 && !lineedit_is_word(le->line[at - 1]))
        at--;
    while (at > 0 && lineedit_is_word(le->line[at - 1]))
        at--;
    return at;
}

static size_t lineedit_find_word_right(const struct lineedit *le)
{
    size_t at = le->cursor;

    while (at < le->length && !lineedit_is_word(le->line[at]))
        at++;
    while (at < le->length && lineedit_is_word(le->line[at]))
        at++;
    return at;
}

void lineedit_move_word_left(struct lineedit *le)
{
    le->cursor = lineedit_find_word_left(le);
}

void lineedit_move_word_right(struct lineedit *le)
{
    le->cursor = lineedit_find_word_right(le);
}

void lineedit_kill_word_left(struct lineedit *le)
{
    lineedit_kill_range(le, lineedit_find_word_left(le), le->cursor);
}

void lineedit_kill_word_right(struct lineedit *le)
{
    lineedit_kill_range(le, le->cursor, lineedit_find_word_right(le));
}

/* The start of the text without spaces that ends at this place. */
static size_t lineedit_find_argument(const struct lineedit *le, size_t at)
{
    while (at > 0 && le->line[at - 1] != ' ')
        at--;
    return at;
}

void lineedit_kill_argument(struct lineedit *le)
{
    size_t start = le->cursor;

    while (start > 0 && le->line[start - 1] == ' ')
        start--;
    start = lineedit_find_argument(le, start);
    lineedit_kill_range(le, start, le->cursor);
}

struct lineedit_completion {
    struct lineedit *le;
    const char *stem; /* the text being completed, in the line */
    size_t stem_length;
    size_t count;
    size_t longest;
    char common[LINEEDIT_MAX + 1];
    size_t common_length;
    size_t per_row; /* listing: words in a row, words listed so far */
    size_t listed;
};

static bool lineedit_complete_accepts(const struct lineedit_completion *c, const char *word)
{
    if (word[0] == '\0' || strncmp(word, c->stem, c->stem_length) != 0)
        return false;
    for (size_t i = 0; word[i] != '\0'; i++) {
        if (i == LINEEDIT_MAX || !lineedit_is_printable((unsigned char)word[i]))
            return false;
    }
    return true;
}

static void lineedit_complete_collect(void *arg, const char *word)
{
    struct lineedit_completion *c = arg;
    size_t shared = 0;

    if (!lineedit_complete_accepts(c, word))
        return;
    size_t length = strlen(word);
    if (c->count++ == 0) {
        memcpy(c->common, word, length + 1);
        c->common_length = length;
    }
    while (shared < c->common_length && word[shared] == c->common[shared])
        shared++;
    c->common[shared] = '\0';
    c->common_length = shared;
    if (length > c->longest)
        c->longest = length;
}

/* Holds to what the first pass found even if the callback offers other words this time. */
static void lineedit_complete_print(void *arg, const char *word)
{
    static const char blanks[LINEEDIT_COLUMNS / 2 + 1] = "                                        ";
    struct lineedit_completion *c = arg;

    if (c->listed == c->count || !lineedit_complete_accepts(c, word))
        return;
    size_t length = strlen(word);
    if (length > c->longest)
        length = c->longest;
    if (length > LINEEDIT_COLUMNS - 1)
        length = LINEEDIT_COLUMNS - 1;
    lineedit_write_bytes(c->le, word, length);
    if (++c->listed == c->count || c->listed % c->per_row == 0)
        lineedit_write_text(c->le, "\r\n");
    else
        lineedit_write_bytes(c->le, blanks, c->longest + 2 - length);
}

static void lineedit_complete_scan(struct lineedit_completion *c,
                                   void (*add)(void *arg, const char *word))
{
    c->le->ops->complete(c->le->ctx, c->le->line, c->le->cursor, add, c);
}

/* Lists the words below the line, leaving the last column free so that no row wraps. */
static void lineedit_complete_list(struct lineedit_completion *c)
{
    c->per_row = (LINEEDIT_COLUMNS - 1 + 2) / (c->longest + 2); /* two blanks between words */
    if (c->per_row == 0)
        c->per_row = 1;
    lineedit_leave_row(c->le);
    lineedit_complete_scan(c, lineedit_complete_print);
    if (c->listed != c->count)
        lineedit_write_text(c->le, "\r\n"); /* fewer than last time: the row is still open */
}

/* After a whole word comes a space: one there already is stepped over. A directory goes on. */
static void lineedit_complete_space(struct lineedit *le, const struct lineedit_completion *c)
{
    if (c->common_length > 0 && c->common[c->common_length - 1] == '/')
        return;
    if (le->line[le->cursor] == ' ')
        le->cursor++;
    else
        lineedit_insert_text(le, " ", 1);
}

/*
 * Tab. Words that are all the same count as one. Of several, the part they share is put in; a
 * second Tab in a row, with nothing left to put in, lists them.
 */
void lineedit_complete_word(struct lineedit *le)
{
    size_t start = lineedit_find_argument(le, le->cursor);
    struct lineedit_completion c = {
        .le = le, .stem = le->line + start, .stem_length = le->cursor - start};
    bool again = le->tab_turn + 1 == le->turn;

    if (le->ops->complete != NULL)
        lineedit_complete_scan(&c, lineedit_complete_collect);
    if (c.count == 0) {
        lineedit_ring_bell(le);
        return;
    }
    le->tab_turn = le->turn;
    size_t missing = c.common_length - c.stem_length;
    bool unique = c.common_length == c.longest;
    if (missing > 0 && !lineedit_insert_text(le, c.common + c.stem_length, missing))
        return;
    if (unique)
        lineedit_complete_space(le, &c);
    else if (missing == 0 && again)
        lineedit_complete_list(&c);
    else if (missing == 0)
        lineedit_ring_bell(le);
}
