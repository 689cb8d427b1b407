/* SPDX-License-Identifier: GPL-2.0 */
/* The reset vector, in 16-bit mode, to start(), in 32-bit mode. */
	.section .entry, "ax"
	.code16
real:	cli
	lgdtl	%cs:(gdtr - real + 0xf000)
	movl	%cr0, %eax
	orl	$1, %eax
	movl	%eax, %cr0
	ljmpl	$8, $protected
	.code32
protected:
	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$0x7000, %esp
	jmp	start
	.balign	8
gdt:	.quad	0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:	.word	23
	.long	gdt

	.section .reset, "ax"
	.code16
	ljmp	$0xf000, $0xf000
	.balign	16, 0
