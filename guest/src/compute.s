# One block of the deterministic computation: state lives in x87, SSE or AVX and general registers
# from the first step to the last, so an interrupt, a checkpoint or a move to another machine that
# loses any of it changes the result.
#
#   compute_block(state: *mut State, buffer: *mut u64, steps: u64, use_avx: u64)
#   State (compute.rs): 0 x87[8] of 16 bytes (10 used) | 128 vectors[16] of 32 bytes |
#                       640 integers[8]
# The x87 control word and MXCSR are set, not inherited. The buffer has 2^17 words (1 MiB).

.pushsection .text.compute, "ax", @progbits
.code64

# A step of the integer part: %rax, %rbx, %rbp, %r8 to %r11 are state, %rdx is scratch.
.macro integer_step
    imulq $0x5851f42d, %rax, %rax
    addq %rbx, %rax
    rorq $17, %rbx
    xorq %rax, %rbx
    movq %rax, %rdx
    shrq $43, %rdx                  # 21 bits
    andl $0x1ffff, %edx
    addq (%rsi,%rdx,8), %rbp
    rolq $9, %rbp
    xorq %rbp, (%rsi,%rdx,8)
    leaq 1(%r8,%r9), %r8
    xorq %r8, %r10
    rolq $23, %r10
    addq %r10, %r9
    mulxless_step
.endm

# 64 x 64 -> 128 bits folded, without leaving state in flags.
.macro mulxless_step
    movq %rax, %r12
    movq %r11, %rax
    mulq %r10
    xorq %rdx, %rax
    leaq 3(%rax,%rbp), %r11
    movq %r12, %rax
.endm

# A step of the x87 part: a rotation and a contraction, so that all eight stay finite.
.macro x87_step
    fadd %st(1), %st(0)
    fmuls compute_half(%rip)
    fincstp
.endm

.global compute_block
compute_block:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    movq %rcx, %r13
    movq %rdx, %rcx
    fninit
    ldmxcsr compute_mxcsr(%rip)
    .irp slot, 7, 6, 5, 4, 3, 2, 1, 0
    fldt 16 * \slot(%rdi)
    .endr
    movq 640(%rdi), %rax
    movq 648(%rdi), %rbx
    movq 656(%rdi), %rbp
    movq 664(%rdi), %r8
    movq 672(%rdi), %r9
    movq 680(%rdi), %r10
    movq 688(%rdi), %r11
    testq %r13, %r13
    jnz 3f

    .irp slot, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqa 128 + 32 * \slot(%rdi), %xmm\slot
    .endr
    .balign 16
1:  integer_step
    x87_step
    paddq %xmm1, %xmm0
    pxor %xmm0, %xmm2
    paddd %xmm2, %xmm3
    pshufd $0x39, %xmm3, %xmm1
    pmuludq %xmm4, %xmm5
    paddq %xmm3, %xmm5
    pxor %xmm5, %xmm4
    paddw %xmm4, %xmm6
    psubd %xmm6, %xmm7
    pxor %xmm7, %xmm8
    paddq %xmm8, %xmm9
    pshufd $0x4e, %xmm9, %xmm10
    pxor %xmm10, %xmm11
    addpd %xmm13, %xmm12
    mulpd compute_half_pd(%rip), %xmm12
    addpd %xmm12, %xmm13
    mulpd compute_half_pd(%rip), %xmm13
    addpd %xmm15, %xmm14
    mulpd compute_half_pd(%rip), %xmm14
    decq %rcx
    jnz 1b
    .irp slot, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqa %xmm\slot, 128 + 32 * \slot(%rdi)
    .endr
    jmp 5f

3:  .irp slot, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqa 128 + 32 * \slot(%rdi), %ymm\slot
    .endr
    .balign 16
4:  integer_step
    x87_step
    vaddpd %ymm1, %ymm0, %ymm0
    vmulpd compute_half_pd(%rip), %ymm0, %ymm0
    vaddpd %ymm2, %ymm1, %ymm1
    vmulpd compute_half_pd(%rip), %ymm1, %ymm1
    vaddpd %ymm0, %ymm2, %ymm2
    vmulpd compute_half_pd(%rip), %ymm2, %ymm2
    vxorps %ymm4, %ymm3, %ymm5
    vperm2f128 $1, %ymm5, %ymm5, %ymm6
    vxorps %ymm6, %ymm4, %ymm3
    vshufps $0x39, %ymm3, %ymm7, %ymm4
    vxorps %ymm5, %ymm8, %ymm7
    vshufps $0x4e, %ymm7, %ymm9, %ymm8
    vxorps %ymm8, %ymm10, %ymm9
    vpermilps $0x93, %ymm9, %ymm10
    vxorps %ymm10, %ymm12, %ymm11
    vxorps %ymm11, %ymm13, %ymm12
    vshufps $0x1b, %ymm12, %ymm14, %ymm13
    vxorps %ymm13, %ymm15, %ymm14
    vpermilps $0x39, %ymm14, %ymm15
    decq %rcx
    jnz 4b
    .irp slot, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqa %ymm\slot, 128 + 32 * \slot(%rdi)
    .endr
    vzeroupper

5:  movq %rax, 640(%rdi)
    movq %rbx, 648(%rdi)
    movq %rbp, 656(%rdi)
    movq %r8, 664(%rdi)
    movq %r9, 672(%rdi)
    movq %r10, 680(%rdi)
    movq %r11, 688(%rdi)
    .irp slot, 0, 1, 2, 3, 4, 5, 6, 7
    fstpt 16 * \slot(%rdi)
    .endr
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
.popsection

.pushsection .rodata.compute, "a", @progbits
    .balign 32
compute_half_pd:
    .double 0.5, 0.5, 0.5, 0.5
compute_half:
    .float 0.5
compute_mxcsr:
    .long 0x1f80
.popsection
