/*
 * The interactive console on COM1: line editing, history, completion, commands.
 *
 * Runs on the boot CPU's loop. Output from elsewhere (the log) hides the line being edited, prints,
 * and shows it again.
 *
 * Lock: console_lock for the line editor's state and the serial line's output.
 */
#pragma once
#include "lib/types.h"

/* Takes over the serial line and shows the prompt. */
void console_init(void);
/* Takes in what was typed; true when there was something. */
bool console_poll(void);
