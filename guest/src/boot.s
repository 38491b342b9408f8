# Ways into the guest; all of them end in cpu_init with %edi = index of the vCPU.
#
#   start32   PVH: 32-bit protected mode, paging off, %ebx = hvm_start_info
#   start64   64-bit mode, paging on with an identity map, %rsi = hvm_start_info
#   ap_start  a copy at 0x8000, real mode, from a start-up IPI
#
# CPL0 code may be interpreted by KVM (PVM backend): plain integer instructions only, and short.

# XEN_ELFNOTE_PHYS32_ENTRY (18), see xen/include/public/elfnote.h
.pushsection .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long start32
.popsection

.pushsection .text.boot, "ax", @progbits

.code32
.global start32
start32:
    cli
    cld
    movl $boot_stack_top, %esp
    movl %ebx, %esi
    call enter_paging
    lgdtl gdt_pointer
    ljmp $0x08, $start64

# Turns long mode on; returns in compatibility mode with a 32-bit code segment.
# Needs a stack only for its return address.
enter_paging:
    movl (%esp), %edx
    movl %cr4, %eax
    orl $0x20, %eax                 # PAE
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %edx, %edi
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    orl $0x100, %eax                # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax           # PG, PE
    movl %eax, %cr0
    jmp *%edi

.code64
.global start64
start64:
    cli
    cld
    movl %esi, %eax
    movq %rax, start_info_address(%rip)
    movl $boot_pml4, %eax
    movq %rax, %cr3
    xorl %edi, %edi
    jmp cpu_init

# The trampoline for application processors, position-independent up to its far jumps.
.global ap_start, ap_start_end
.code16
ap_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl (0x8000 + ap_gdt_pointer - ap_start)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x28, $ap_start32
    .balign 4
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_start_end:

.code32
ap_start32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $boot_stack_top, %esp
    call enter_paging
    ljmp $0x08, $ap_start64
.code64
ap_start64:
    movl ap_cpu(%rip), %edi
    jmp cpu_init

# Everything a vCPU needs before it can run Rust at CPL3. %edi = its index; no stack is used.
cpu_init:
    movl %edi, %ebp
    movb $0xff, %al                 # both PICs masked: all interrupts come by the APICs
    outb %al, $0x21
    outb %al, $0xa1
    lgdtq gdt_pointer(%rip)
    movl $0x1b, %eax
    movw %ax, %ds
    movw %ax, %es

    # Kernel stack and per-CPU block share a page; the block is at its start.
    movl %ebp, %eax
    incl %eax
    shll $12, %eax
    addl $kernel_pages, %eax
    movq %rax, %rsp

    # TSS: rsp0, and an I/O bitmap that allows ports 0 to 0x3ff to CPL3.
    movl %ebp, %edx
    shll $8, %edx
    leal task_states(%rdx), %edx
    movq %rax, 4(%rdx)
    movw $104, 102(%rdx)
    movb $0xff, 232(%rdx)
    movl %ebp, %ecx
    shll $4, %ecx
    leal gdt_tss(%rcx), %ecx
    movl %edx, %eax
    shll $16, %eax
    orl $232, %eax
    movl %eax, (%rcx)
    movl %edx, %eax
    shrl $16, %eax
    movzbl %al, %eax
    movl %edx, %ebx
    andl $0xff000000, %ebx
    orl %ebx, %eax
    orl $0x8900, %eax
    movl %eax, 4(%rcx)
    movq $0, 8(%rcx)
    movl %ecx, %eax
    subl $gdt, %eax
    ltr %ax

    # IDT: one gate per stub of 16 bytes; the first vCPU writes it for all.
    testl %ebp, %ebp
    jnz 2f
    movl $vector_stubs, %eax
    movl $idt, %ebx
    movl $80, %ecx
1:  movl %eax, %edx
    andl $0xffff, %edx
    orl $0x80000, %edx             # kernel code selector
    movl %edx, (%rbx)
    movl %eax, %edx
    andl $0xffff0000, %edx
    orl $0x8e00, %edx               # present, interrupt gate
    movl %edx, 4(%rbx)
    movq $0, 8(%rbx)
    addl $16, %eax
    addl $16, %ebx
    decl %ecx
    jnz 1b
2:  lidtq idt_pointer(%rip)

    # x87, SSE and, where there is, AVX for CPL3.
    movq %cr0, %rax
    andl $0x9fffffff, %eax          # CD, NW off
    andl $0xfffffff3, %eax          # EM, TS off
    orl $0x10022, %eax              # WP, NE, MP
    movq %rax, %cr0
    movl $1, %eax
    xorl %ecx, %ecx
    cpuid
    movl $0x620, %eax               # PAE, OSFXSR, OSXMMEXCPT
    btl $26, %ecx
    jnc 3f
    orl $0x40000, %eax              # OSXSAVE
3:  movq %rax, %cr4
    btl $26, %ecx
    jnc 4f
    movl $3, %eax
    btl $28, %ecx
    jnc 5f
    orl $4, %eax
5:  xorl %ecx, %ecx
    xorl %edx, %edx
    xsetbv
4:
    # To CPL3, interrupts on. As if called: %rsp + 8 is a multiple of 16.
    movl %ebp, %eax
    incl %eax
    shll $16, %eax
    addl $user_stacks - 8, %eax
    movl %ebp, %edi
    pushq $0x1b
    pushq %rax
    pushq $0x202
    pushq $0x23
    pushq $cpu_main
    iretq

.popsection

.pushsection .data.boot, "aw", @progbits
    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 kernel code, 64 bits
    .quad 0x00cf93000000ffff        # 0x10 kernel data
    .quad 0x00cff3000000ffff        # 0x18 user data
    .quad 0x00affb000000ffff        # 0x20 user code, 64 bits
    .quad 0x00cf9b000000ffff        # 0x28 kernel code, 32 bits
gdt_tss:
    .fill 16, 8, 0                  # 0x30 and on: one TSS descriptor of 16 bytes per vCPU
gdt_end:
    .balign 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 80 * 16 - 1
    .quad idt

# Identity map of the first 4 GiB in 2 MiB pages, for CPL3 too; Rust adds what lies above.
    .balign 4096
.global boot_pml4, boot_pdpt
boot_pml4:
    .quad boot_pdpt + 7
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 7, boot_pd + 0x1007, boot_pd + 0x2007, boot_pd + 0x3007
    .fill 508, 8, 0
boot_pd:
    .set address, 0
    .rept 2048
    .quad address + 0x87            # present, writable, user, 2 MiB
    .set address, address + 0x200000
    .endr

    .balign 8
.global start_info_address, ap_cpu
start_info_address:
    .quad 0
ap_cpu:
    .long 0
.popsection

.pushsection .bss.boot, "aw", @nobits
    .balign 4096
.global kernel_pages
kernel_pages:
    .skip 8 * 4096
user_stacks:
    .skip 8 * 65536
task_states:
    .skip 8 * 256
idt:
    .skip 80 * 16
    .skip 64
    .balign 16
boot_stack_top:
.popsection
