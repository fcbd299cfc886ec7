/* The smallest guest that can talk: what the tests of the machine layer run instead of the kernel.
 * 32-bit, no paging, no interrupts, everything polled; QEMU loads it by its PVH note.
 *
 * At start it prints one line on COM1: "up ", then '0' if its bss was zero, else '1', then '0' if
 * its data was as in the file, else '1', then the byte at CELL as two hex digits, then a newline.
 * After that it obeys bytes on COM2:
 *   p x   write the byte x to CELL, answer 'p'
 *   g     answer the byte at CELL
 *   c x   print the byte x on COM1
 *   t     triple fault
 *   q     leave through isa-debug-exit at port 0xf4, if there is one (QEMU's status is then 33)
 *   s     spin for ever
 *   anything else is sent back
 */
#define COM1 0x3f8
#define COM2 0x2f8
#define LSR  5
#define CELL 0x300000

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18
    .asciz "Xen"
    .long start

    .macro putc port
    mov $\port, %edi
    call put_byte
    .endm

    .macro getc
    call get_byte
    .endm

    .text
    .code32
    .globl start
start:
    cli
    mov $stack_top, %esp
    mov $'u', %al
    putc COM1
    mov $'p', %al
    putc COM1
    mov $' ', %al
    putc COM1
    mov bss_word, %eax
    call put_flag
    mov data_word, %eax
    sub $0x600d, %eax
    call put_flag
    mov CELL, %al
    shr $4, %al
    call put_digit
    mov CELL, %al
    and $15, %al
    call put_digit
    mov $'\n', %al
    putc COM1
    movl $1, bss_word
    movl $1, data_word

serve:
    getc
    cmp $'p', %al
    je poke
    cmp $'g', %al
    je peek
    cmp $'c', %al
    je print
    cmp $'t', %al
    je triple_fault
    cmp $'q', %al
    je quit
    cmp $'s', %al
    je spin
reply:
    putc COM2
    jmp serve

poke:
    getc
    mov %al, CELL
    mov $'p', %al
    jmp reply
peek:
    mov CELL, %al
    jmp reply
print:
    getc
    putc COM1
    jmp serve
triple_fault:
    lidt no_idt
    int3
quit:
    mov $16, %al
    out %al, $0xf4
    jmp serve
spin:
    jmp spin

/* Send al to the UART at edi. */
put_byte:
    mov %al, %cl
    lea LSR(%edi), %edx
1:  in %dx, %al
    test $0x20, %al
    jz 1b
    mov %edi, %edx
    mov %cl, %al
    out %al, %dx
    ret

/* Wait for a byte on COM2, into al. */
get_byte:
    mov $(COM2 + LSR), %edx
1:  pause
    in %dx, %al
    test $1, %al
    jz 1b
    mov $COM2, %edx
    in %dx, %al
    ret

/* Print '0' if eax is zero, else '1'. */
put_flag:
    test %eax, %eax
    setnz %al
/* Print the digit in al, 0 to 15. */
put_digit:
    cmp $10, %al
    jb 1f
    add $('a' - '0' - 10), %al
1:  add $'0', %al
    putc COM1
    ret

    .data
data_word:
    .long 0x600d
no_idt:
    .word 0
    .long 0

    .bss
    .align 16
bss_word:
    .skip 16
    .skip 4096
stack_top:

    .section .note.GNU-stack, "", @progbits
