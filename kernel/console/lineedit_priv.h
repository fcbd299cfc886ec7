/*
 * What the files of the line editor share: lineedit.c (display, editing, keys),
 * lineedit_history.c (history, reverse search, killed text), lineedit_complete.c (words and their
 * completion).
 */
#pragma once
#include "console/lineedit.h"

#define LINEEDIT_CTRL(letter) ((letter)&0x1f)

/* Bytes below 0x80 are their own keys; these are the ones only escape sequences give. */
enum lineedit_key {
    LINEEDIT_KEY_NONE = 0,
    LINEEDIT_KEY_ESCAPE = 0x1b,
    LINEEDIT_KEY_BACKSPACE = 0x7f,
    LINEEDIT_KEY_DELETE = 0x80,
    LINEEDIT_KEY_WORD_LEFT,
    LINEEDIT_KEY_WORD_RIGHT,
    LINEEDIT_KEY_KILL_WORD_LEFT,
    LINEEDIT_KEY_KILL_WORD_RIGHT,
    LINEEDIT_KEY_COUNT,
};

static inline bool lineedit_is_printable(unsigned char byte)
{
    return byte >= ' ' && byte < 0x7f;
}

/* Output. */
void lineedit_write_bytes(struct lineedit *le, const char *bytes, size_t n);
void lineedit_write_text(struct lineedit *le, const char *text);
void lineedit_ring_bell(struct lineedit *le);
void lineedit_leave_row(struct lineedit *le); /* goes to a fresh row; the old one stays */
void lineedit_refresh(struct lineedit *le);

/* Editing. Text is printable ASCII; set_text takes what fits, insert_text all or nothing. */
void lineedit_set_text(struct lineedit *le, const char *text, size_t cursor);
bool lineedit_insert_text(struct lineedit *le, const char *text, size_t n);
/* Deletes the text from start to end; the cursor stands at one of them. */
void lineedit_delete_range(struct lineedit *le, size_t start, size_t end);

/* Killed text. */
void lineedit_kill_range(struct lineedit *le, size_t start, size_t end);
void lineedit_kill_to_start(struct lineedit *le);
void lineedit_kill_to_end(struct lineedit *le);
void lineedit_yank_killed(struct lineedit *le);

/* History and reverse search. */
void lineedit_history_add(struct lineedit *le);
void lineedit_history_older(struct lineedit *le);
void lineedit_history_newer(struct lineedit *le);
void lineedit_search_begin(struct lineedit *le);
bool lineedit_search_key(struct lineedit *le, int key); /* false: the key is left to do */

/* Words. */
void lineedit_move_word_left(struct lineedit *le);
void lineedit_move_word_right(struct lineedit *le);
void lineedit_kill_word_left(struct lineedit *le);
void lineedit_kill_word_right(struct lineedit *le);
void lineedit_kill_argument(struct lineedit *le);
void lineedit_complete_word(struct lineedit *le);
