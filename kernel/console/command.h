/*
 * Console commands. COMMAND(name, "usage", "what it does") { ... } registers one, beside the code
 * that it shows. The function gets the words of the line, its own name first, and returns false when
 * they make no sense: the console then prints the usage.
 */
#pragma once
#include "lib/types.h"

#define COMMAND_WORDS 16

struct command {
    const char *name, *usage, *help;
    bool (*run)(int argc, char **argv);
};

#define COMMAND(ident, usage, help)                                                                \
    static bool command_##ident(int argc, char **argv);                                            \
    static const struct command command_entry_##ident                                              \
        __attribute__((section(".kos.commands." #ident), used)) = {#ident, usage, help,            \
                                                                   command_##ident};               \
    static bool command_##ident(int argc __attribute__((unused)),                                  \
                                char **argv __attribute__((unused)))

/* Prints on the console only, not into the log. */
void cprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* One line that names the bad word and what was expected; returns true (the usage says no more). */
bool command_expected(const char *word, const char *expected);
/* Says so, and returns true, when more than max words follow the command's name. */
bool command_extra(int argc, char **argv, int max);
/* Puts words together with single spaces, as much as fits; returns the length. */
size_t command_join(char *buf, size_t cap, int n, char **words);
/* Parses a number argument within [min, max]; says what was expected when it is none. */
bool command_number(const char *word, const char *what, u64 min, u64 max, u64 *value);
