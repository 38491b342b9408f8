# What runs at CPL0 after boot: interrupt, exception and system-call stubs, nothing else.
#
# The page of a vCPU (kernel_pages + 4096 * index); the stack grows down from its end:
#    0 events   any interrupt taken        8 ticks     timer interrupts
#   16 devices  device interrupts

.pushsection .text.stubs, "ax", @progbits
.code64

# Vectors 0 to 79, 16 bytes each. 8, 10 to 14, 17, 21, 29 and 30 bring an error code.
    .balign 16
vector_stubs:
    .set vector, 0
    .rept 64
    .balign 16
    .if vector == 6
    jmp on_invalid_opcode
    .endif
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $vector
    jmp fatal
    .set vector, vector + 1
    .endr
    .balign 16
    jmp on_timer                    # 0x40
    .balign 16
    jmp on_wake                     # 0x41
    .balign 16
    jmp on_device                   # 0x42
    .set vector, 0x43
    .rept 12
    .balign 16
    pushq $0
    pushq $vector
    jmp fatal
    .set vector, vector + 1
    .endr
    .balign 16
    iretq                           # 0x4f, spurious: no end-of-interrupt
    .balign 16

on_timer:
    pushq %rax
    movq %rsp, %rax
    andq $-4096, %rax
    incq 8(%rax)
    jmp end_of_interrupt
on_device:
    pushq %rax
    movq %rsp, %rax
    andq $-4096, %rax
    incq 16(%rax)
    jmp end_of_interrupt
on_wake:
    pushq %rax
    movq %rsp, %rax
    andq $-4096, %rax
end_of_interrupt:
    incq (%rax)
    cmpl $0, uses_x2apic(%rip)
    je 1f
    pushq %rcx
    pushq %rdx
    movl $0x80b, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    popq %rdx
    popq %rcx
    popq %rax
    iretq
1:  movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq

# An exception or an interrupt that nobody expects: recorded, then reported from CPL3 by
# fatal_main on a stack of its own, interrupts off. Only the first vCPU to fail reports.
#   stack: vector, error code, rip, cs, rflags, rsp, ss
fatal:
    pushq %rax
    movl $1, %eax
    xchgl %eax, fatal_claimed(%rip)
    testl %eax, %eax
    jnz 2f
    popq fatal_record + 64(%rip)    # rax
    popq fatal_record + 0(%rip)     # vector
    popq fatal_record + 8(%rip)     # error code
    popq fatal_record + 16(%rip)    # rip
    popq fatal_record + 24(%rip)    # cs
    popq fatal_record + 32(%rip)    # rflags
    popq fatal_record + 40(%rip)    # rsp
    movq %cr2, %rax
    movq %rax, fatal_record + 48(%rip)
    movq %rsp, %rax
    subq $kernel_pages, %rax
    shrq $12, %rax
    movq %rax, fatal_record + 56(%rip)
    pushq $0x1b
    pushq $fatal_stack_top - 8
    pushq $0x2
    pushq $0x23
    pushq $fatal_main
    iretq
2:  movq %rsp, %rax                 # a fault while reporting ends at once, another vCPU waits
    subq $kernel_pages, %rax
    shrq $12, %rax
    cmpq fatal_record + 56(%rip), %rax
    jne 3f
    movb $0x7e, %al
    outb %al, $0xf4
3:  cli
    hlt
    jmp 3b

# System calls: %rax = number, arguments in %rdi, %rsi, %rdx; %rcx, %r8 and %r11 are lost.
# The call is one certain invalid instruction: `syscall` enters with CPL 3 on the PVM backend, and
# `int n` arrives as #UD there anyway. Any other #UD is fatal.
.global system_call
system_call:
    ud2
    ret

on_invalid_opcode:
    cmpq $system_call, (%rsp)
    je 1f
    pushq $0
    pushq $6
    jmp fatal
1:  addq $2, (%rsp)
    cmpl $1, %eax
    jb syscall_wait
    je syscall_rdmsr
    cmpl $3, %eax
    jb syscall_wrmsr
    je syscall_cpuid
    cmpl $5, %eax
    jb syscall_reload
    je syscall_stop
    cmpl $7, %eax
    jb syscall_port
    je syscall_port_string
    ud2

# 0: sleep until an interrupt, unless one came since events was %rdi.
syscall_wait:
    movq %rsp, %rdx
    andq $-4096, %rdx
    cmpq %rdi, (%rdx)
    jne 1f
    sti
    hlt
    cli
1:  iretq

# 1: read model-specific register %edi.
syscall_rdmsr:
    movl %edi, %ecx
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    iretq

# 2: write %rsi to model-specific register %edi.
syscall_wrmsr:
    movl %edi, %ecx
    movl %esi, %eax
    movq %rsi, %rdx
    shrq $32, %rdx
    wrmsr
    iretq

# 3: CPUID leaf %edi, sub-leaf %esi, into four words at %rdx. At CPL3 it could answer for the host.
syscall_cpuid:
    movq %rdx, %r11
    movq %rbx, %r8
    movl %edi, %eax
    movl %esi, %ecx
    cpuid
    movl %eax, (%r11)
    movl %ebx, 4(%r11)
    movl %ecx, 8(%r11)
    movl %edx, 12(%r11)
    movq %r8, %rbx
    iretq

# 4: the page tables changed.
syscall_reload:
    movq %cr3, %rax
    movq %rax, %cr3
    iretq

# 5: never again.
syscall_stop:
    cli
    hlt
    jmp syscall_stop

# 6: one access to port %edi; %edx = width, and 8 to write %esi. Any port: the bitmap has few.
syscall_port:
    movl %edx, %ecx
    movl %edi, %edx
    movl %esi, %eax
    cmpl $2, %ecx
    jb 1f
    je 2f
    cmpl $4, %ecx
    je 4f
    cmpl $10, %ecx
    jb 9f
    je 10f
    outl %eax, %dx
    iretq
1:  inb %dx, %al
    iretq
2:  inw %dx, %ax
    iretq
4:  inl %dx, %eax
    iretq
9:  outb %al, %dx
    iretq
10: outw %ax, %dx
    iretq

# 7: items at %rsi to or from port %edi; %edx = width, 8 to write, items << 8.
syscall_port_string:
    movq %rdi, %r8
    movq %rsi, %r11
    movl %edx, %ecx
    movzbl %dl, %eax
    shrl $8, %ecx
    movl %edi, %edx
    movq %rsi, %rdi
    cmpl $2, %eax
    jb 1f
    je 2f
    cmpl $4, %eax
    je 4f
    cmpl $10, %eax
    jb 9f
    je 10f
    rep outsl
    jmp 3f
1:  rep insb
    jmp 3f
2:  rep insw
    jmp 3f
4:  rep insl
    jmp 3f
9:  rep outsb
    jmp 3f
10: rep outsw
3:  movq %r8, %rdi
    movq %r11, %rsi
    iretq

.popsection

.pushsection .bss.stubs, "aw", @nobits
    .balign 16
.global uses_x2apic, fatal_record
fatal_record:
    .skip 72
fatal_claimed:
    .skip 4
uses_x2apic:
    .skip 4
    .balign 16
    .skip 16384
fatal_stack_top:
.popsection
