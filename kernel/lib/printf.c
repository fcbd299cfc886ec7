/*
 * A small printf. The state is one `struct out` on the stack; nothing is allocated, nothing is
 * static, so that it can run in a panic.
 */
#include "lib/printf.h"
#include "lib/string.h"

struct out {
    char *buf;
    size_t cap;
    size_t len;
};

struct spec {
    bool left, zero;
    int width, precision;
    int length; /* number of l's; z counts as one */
};

static void put(struct out *o, char c)
{
    if (o->len + 1 < o->cap)
        o->buf[o->len] = c;
    o->len++;
}

static void put_repeated(struct out *o, char c, int n)
{
    while (n-- > 0)
        put(o, c);
}

static void put_text(struct out *o, const struct spec *s, const char *text, int n)
{
    if (!s->left)
        put_repeated(o, ' ', s->width - n);
    for (int i = 0; i < n; i++)
        put(o, text[i]);
    if (s->left)
        put_repeated(o, ' ', s->width - n);
}

static void put_number(struct out *o, const struct spec *s, u64 v, unsigned base, const char *sign,
                       bool upper)
{
    char digits[24];
    const char *set = upper ? "0123456789ABCDEF" : "0123456789abcdef";
    int n = 0;
    for (; v || (!n && s->precision); v /= base)
        digits[sizeof(digits) - 1 - (size_t)n++] = set[v % base];
    int zeros = s->precision > n ? s->precision - n : 0;
    int total = n + zeros + (int)strlen(sign);
    if (s->zero && !s->left && s->precision < 0 && s->width > total) {
        zeros += s->width - total;
        total = s->width;
    }
    if (!s->left)
        put_repeated(o, ' ', s->width - total);
    for (; *sign; sign++)
        put(o, *sign);
    put_repeated(o, '0', zeros);
    for (int i = n; i > 0; i--)
        put(o, digits[sizeof(digits) - (size_t)i]);
    if (s->left)
        put_repeated(o, ' ', s->width - total);
}

static const char *parse_number(const char *f, int *value)
{
    *value = 0;
    while (*f >= '0' && *f <= '9')
        *value = *value * 10 + (*f++ - '0');
    return f;
}

/* `ap` is passed by pointer: a va_list that a callee advanced is indeterminate in the caller. */
static const char *parse_spec(const char *f, struct spec *s, va_list *ap)
{
    *s = (struct spec){.precision = -1};
    for (;; f++) {
        if (*f == '-')
            s->left = true;
        else if (*f == '0')
            s->zero = true;
        else
            break;
    }
    if (*f == '*') {
        s->width = va_arg(*ap, int);
        if (s->width < 0) {
            s->left = true;
            s->width = -s->width;
        }
        f++;
    } else {
        f = parse_number(f, &s->width);
    }
    if (*f == '.') {
        f++;
        if (*f == '*') {
            s->precision = va_arg(*ap, int);
            f++;
        } else {
            f = parse_number(f, &s->precision);
        }
    }
    for (; *f == 'l' || *f == 'z'; f++)
        s->length++;
    return f;
}

static void put_signed(struct out *o, const struct spec *s, va_list *ap)
{
    s64 v = s->length ? va_arg(*ap, s64) : va_arg(*ap, int);
    put_number(o, s, v < 0 ? -(u64)v : (u64)v, 10, v < 0 ? "-" : "", false);
}

static void put_unsigned(struct out *o, const struct spec *s, va_list *ap, unsigned base,
                         bool upper)
{
    u64 v = s->length ? va_arg(*ap, u64) : va_arg(*ap, unsigned);
    put_number(o, s, v, base, "", upper);
}

static void put_string(struct out *o, const struct spec *s, va_list *ap)
{
    const char *text = va_arg(*ap, const char *);
    int n = 0;
    if (!text)
        text = "(null)";
    while ((s->precision < 0 || n < s->precision) && text[n])
        n++;
    put_text(o, s, text, n);
}

static void put_conversion(struct out *o, const struct spec *s, char conv, va_list *ap)
{
    char c;
    switch (conv) {
    case 'd':
    case 'i':
        put_signed(o, s, ap);
        break;
    case 'u':
        put_unsigned(o, s, ap, 10, false);
        break;
    case 'x':
    case 'X':
        put_unsigned(o, s, ap, 16, conv == 'X');
        break;
    case 'o':
        put_unsigned(o, s, ap, 8, false);
        break;
    case 'p':
        put_number(o, s, (u64)(uintptr_t)va_arg(*ap, void *), 16, "0x", false);
        break;
    case 'c':
        c = (char)va_arg(*ap, int);
        put_text(o, s, &c, 1);
        break;
    case 's':
        put_string(o, s, ap);
        break;
    default:
        put(o, conv);
        break;
    }
}

size_t vformat(char *buf, size_t cap, const char *fmt, va_list ap)
{
    struct out o = {.buf = buf, .cap = cap};
    va_list args;
    va_copy(args, ap);
    for (; *fmt; fmt++) {
        struct spec s;
        if (*fmt != '%') {
            put(&o, *fmt);
            continue;
        }
        fmt = parse_spec(fmt + 1, &s, &args);
        if (!*fmt)
            break;
        put_conversion(&o, &s, *fmt, &args);
    }
    va_end(args);
    if (cap)
        buf[MIN(o.len, cap - 1)] = 0;
    return o.len;
}

size_t format(char *buf, size_t cap, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    size_t n = vformat(buf, cap, fmt, ap);
    va_end(ap);
    return n;
}
