# Multiboot start (version 0.6.96, sections 3.1 and 3.2): 64-bit mode with 4 KiB pages, the first 128 MiB mapped one to one, then main64.
        .section .header, "a"
        .align  4
        .long   0x1BADB002, 0x3, -(0x1BADB002 + 0x3)

        .equ    PML4, 0x200000
        .equ    PDPT, 0x201000
        .equ    DIRECTORY, 0x202000
        .equ    TABLES, 0x210000
        .equ    PAGES, 64 * 512

        .text
        .code32
        .globl  start
start:
        cld
        mov     $0x90000, %esp
        mov     %ebx, %ebp                      # the multiboot information
        mov     $PML4, %edi
        mov     $(TABLES - PML4) / 4, %ecx
        xor     %eax, %eax
        rep stosl
        movl    $PDPT + 3, PML4
        movl    $DIRECTORY + 3, PDPT
        mov     $TABLES + 3, %eax
        mov     $64, %ecx
        mov     $DIRECTORY, %edi
        call    fill
        mov     $3, %eax
        mov     $PAGES, %ecx
        mov     $TABLES, %edi
        call    fill
        mov     $0x620, %eax                    # PAE, OSFXSR, OSXMMEXCPT
        mov     %eax, %cr4
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx               # EFER.LME
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        and     $~0xC, %eax                     # EM, TS
        or      $0x80010023, %eax               # PG, WP, NE, MP, PE
        mov     %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $8, $long_mode

fill:                                           # ECX entries at EDI that map successive pages, the first as EAX says
        mov     %eax, (%edi)
        movl    $0, 4(%edi)
        add     $8, %edi
        add     $0x1000, %eax
        loop    fill
        ret

        .code64
long_mode:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $0x7000000, %rsp
        mov     %ebp, %edi
        call    main64
1:      hlt
        jmp     1b

        .align  16
gdt:    .quad   0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .section .kernels, "aw"
        .incbin "kern.bin"

        .section .note.GNU-stack, "", @progbits
