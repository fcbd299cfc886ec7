# Builds build/kos.elf and build/kos.abi.json. Included by the Makefile, which sets PYTHON and V.
#
# The kernel is linked twice: first with empty symbol tables, then with those that scripts/ksyms.py
# reads from the first one. The tables lie behind all code and constants, so no address in them moves.

CC ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
LD := ld
BUILD ?= build
Q := $(if $(V),,@)
say = $(if $(V),,@echo "$(1)" $(2))

KCFLAGS := -std=gnu17 -O2 -g -ffreestanding -fno-pic -fno-strict-aliasing \
	-fno-stack-protector -fno-asynchronous-unwind-tables -fno-delete-null-pointer-checks \
	-fno-omit-frame-pointer -mcmodel=kernel -mno-red-zone -mgeneral-regs-only \
	-fms-extensions -Wall -Wextra -Werror -Wshadow -Wmissing-prototypes -Wstrict-prototypes -Wvla \
	-I kernel -I arch -ffile-prefix-map=$(CURDIR)/=
KASFLAGS := -g -Wa,--noexecstack -I kernel -I arch
KLDFLAGS := -nostdlib -static -z max-page-size=4096 -z noexecstack --build-id=sha1 -T linker.ld
ifeq ($(findstring clang,$(CC)),)
KCFLAGS += -fno-tree-loop-distribute-patterns
else
KCFLAGS += -Wno-microsoft-anon-tag
endif

# COVERAGE=1 counts what runs in kernel/mm and kernel/rpc; see docs/coverage.md. Their tests count for
# the headers that they use. Compiled as it is written: the optimizer merges lines and branches.
KGCOV :=
KCOUNTED :=
KCOUNT :=
ifneq ($(COVERAGE),)
ifneq ($(findstring clang,$(CC)),)
$(error COVERAGE=1 needs gcc, but CC is $(CC))
endif
KGCOV := -O0 --coverage -fprofile-info-section -fprofile-update=atomic
KCOUNTED := $(wildcard $(foreach part,mm rpc,kernel/$(part)/*.c kernel/$(part)/tests/*.c))
$(KCOUNTED:%.c=$(BUILD)/obj/%.o): KCOUNT := $(KGCOV)
endif

KSRCS := $(filter-out $(wildcard kernel/user/*.c) $(if $(KGCOV),,kernel/debug/gcov.c), \
	$(wildcard kernel/*/*.c kernel/*/tests/*.c arch/x86_64/*.c))
KASMS := $(wildcard arch/x86_64/*.S)
KOBJS := $(KSRCS:%.c=$(BUILD)/obj/%.o) $(KASMS:%.S=$(BUILD)/obj/%.S.o)

# A change of compiler or flags rebuilds everything.
KFLAGS := $(strip $(CC) $(KCFLAGS) $(KASFLAGS) $(KGCOV) $(KCOUNTED))
$(BUILD)/flags: FORCE
	@mkdir -p $(BUILD)
	@echo '$(KFLAGS)' | cmp -s - $@ || echo '$(KFLAGS)' > $@
.PHONY: FORCE

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	$(call say,  CC  ,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(KCFLAGS) $(KCOUNT) -MMD -MP -c -o $@ $<

$(BUILD)/obj/%.S.o: %.S $(BUILD)/flags
	$(call say,  AS  ,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(KASFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/ksyms-empty.S: scripts/ksyms.py
	@mkdir -p $(@D)
	$(Q)$(PYTHON) scripts/ksyms.py > $@

$(BUILD)/kos-first.elf: $(KOBJS) $(BUILD)/ksyms-empty.o linker.ld
	$(call say,  LD  ,$@)
	$(Q)$(LD) $(KLDFLAGS) -o $@ $(KOBJS) $(BUILD)/ksyms-empty.o

$(BUILD)/ksyms.S: $(BUILD)/kos-first.elf scripts/ksyms.py
	$(call say,  SYMS,$@)
	$(Q)$(PYTHON) scripts/ksyms.py $< > $@

$(BUILD)/ksyms%.o: $(BUILD)/ksyms%.S
	$(Q)$(CC) -c -Wa,--noexecstack -o $@ $<
$(BUILD)/ksyms.o: $(BUILD)/ksyms.S
	$(Q)$(CC) -c -Wa,--noexecstack -o $@ $<

$(BUILD)/kos.elf: $(KOBJS) $(BUILD)/ksyms.o linker.ld
	$(call say,  LD  ,$@)
	$(Q)$(LD) $(KLDFLAGS) -o $@.tmp $(KOBJS) $(BUILD)/ksyms.o && mv $@.tmp $@

# The ABI file describes exactly this image: it carries its build id.
$(BUILD)/kos.abi.json: $(BUILD)/kos.elf scripts/abi.py
	$(call say,  ABI ,$@)
	$(Q)$(PYTHON) scripts/abi.py $< $@

-include $(KOBJS:.o=.d)
