// SPDX-License-Identifier: GPL-2.0
/*
 * All the software of the virtual machine: it takes the place of the BIOS. It
 * drives an igb in loopback, has it write frames with a serial number into pages
 * of memory, checks what arrives, and writes to other pages itself.
 */
#include "layout.h"

typedef unsigned int u32;
typedef unsigned short u16;

#define BAR0	0xe0000000u
#define SLOT	5u

struct tx_desc { u32 address, high, command, status; };
struct rx_desc { u32 address, high, status, length; };

static volatile struct control *const control = (void *)CONTROL;
static volatile struct tx_desc *const tx = (void *)TX_RING;
static volatile struct rx_desc *const rx = (void *)RX_RING;
static volatile u32 *const issued = (void *)ISSUED;
static volatile u32 *const done = (void *)DONE;
static volatile u32 *const cpu_done = (void *)CPU_DONE;

static void outl(u16 port, u32 value) { asm volatile("outl %0, %1" :: "a"(value), "Nd"(port)); }

static void config_write(u32 offset, u32 value)
{
	outl(0xcf8, 0x80000000u | SLOT << 11 | offset);
	outl(0xcfc, value);
}

static u32 reg_read(u32 reg) { return *(volatile u32 *)(BAR0 + reg); }
static void reg_write(u32 reg, u32 value) { *(volatile u32 *)(BAR0 + reg) = value; }

static u32 random(void)
{
	u32 x = control->random;

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return control->random = x;
}

static u32 next_page(u32 n)
{
	switch (control->pattern) {
	case HOT:	/* nine of ten to a sixteenth of the pages */
		return random() % 10 ? random() % (NR_DMA_PAGES / 16) : random() % NR_DMA_PAGES;
	case SWEEP:
		return n % NR_DMA_PAGES;
	case NARROW:	/* one leaf of 2 MiB */
		return random() % 512;
	default:
		return random() % NR_DMA_PAGES;
	}
}

static void device_init(void)
{
	config_write(0x10, BAR0);
	config_write(0x14, BAR0 + 0x100000);
	config_write(0x1c, BAR0 + 0x200000);
	config_write(0x04, 0x6);			/* memory, bus master */

	reg_write(0x0000, reg_read(0x0000) | 1u << 26);	/* reset */
	while (reg_read(0x0000) & 1u << 26)
		;
	reg_write(0x150c, ~0u);				/* no interrupts */
	reg_write(0x0018, (reg_read(0x0018) & ~0xc00000u) | 1u << 28);
	reg_write(0x0020, 0x1200u | 1u << 21 | 1u << 26);	/* autonegotiate */
	while (!(reg_read(0x0008) & 2))			/* link */
		;
	reg_write(0xe000, TX_RING);
	reg_write(0xe004, 0);
	reg_write(0xe008, RING * 16);
	reg_write(0xe010, 0);
	reg_write(0xe018, 0);
	reg_write(0xe028, 1u << 25);
	reg_write(0xc000, RX_RING);
	reg_write(0xc004, 0);
	reg_write(0xc008, RING * 16);
	reg_write(0xc010, 0);
	reg_write(0xc018, 0);
	reg_write(0xc00c, 1u << 25);			/* advanced, one buffer */
	reg_write(0xc028, 1u << 25);
	/* Everything is taken, and comes back in loopback, without CRC */
	reg_write(0x0100, 1u << 1 | 1u << 3 | 1u << 4 | 1u << 15 | 1u << 6 | 1u << 26);
	reg_write(0x0400, 1u << 1 | 1u << 3);
}

void start(void)
{
	u32 i, j, serial = 0, sweep = 0, pages[BATCH];

	control->frames = control->errors = control->timeouts = 0;
	control->cpu_writes = control->tail = 0;
	control->random = control->seed * 2654435761u | 1;
	for (i = 0; i < NR_DMA_PAGES; i++) {
		issued[i] = done[i] = 0;
		*(volatile u32 *)(DMA_PAGES + i * 4096 + 4092) = i + 1;
	}
	for (i = 0; i < NR_CPU_PAGES; i++) {
		cpu_done[i] = 0;
		*(volatile u32 *)(CPU_PAGES + i * 4096 + 4092) = i + 1;
	}
	device_init();
	control->ready = MAGIC;

	for (;;) {
		u32 tail = control->tail;

		if (control->frames + BATCH > control->budget)
			continue;
		for (i = 0; i < BATCH; i++) {
			u32 slot = (tail + i) % RING, buffer = TX_BUFFERS + slot * 2048;
			volatile u32 *frame = (void *)buffer;

			for (;;) {		/* no page twice in a batch */
				pages[i] = next_page(sweep++);
				for (j = 0; j < i && pages[j] != pages[i]; j++)
					;
				if (j == i)
					break;
			}
			issued[pages[i]] = ++serial;
			frame[0] = frame[1] = ~0u;	/* broadcast */
			frame[2] = 0;
			frame[3] = 0xb588;		/* experimental */
			frame[4] = serial;
			frame[5] = pages[i];
			for (j = 6; j < FRAME / 4; j++)
				frame[j] = serial * j;
			rx[slot].address = DMA_PAGES + pages[i] * 4096;
			rx[slot].high = rx[slot].status = rx[slot].length = 0;
			tx[slot].address = buffer;
			tx[slot].high = 0;
			tx[slot].command = FRAME | 0x3u << 20 | 1u << 29 | 1u << 25 | 1u << 24;
			tx[slot].status = FRAME << 14;
		}
		control->tail = (tail + BATCH) % RING;
		reg_write(0xc018, control->tail);
		reg_write(0xe018, control->tail);
		for (i = 0; i < BATCH; i++) {
			u32 slot = (tail + i) % RING;
			volatile u32 *frame = (void *)(DMA_PAGES + pages[i] * 4096);

			for (j = 0; !(rx[slot].status & 1); j++)
				if (j == 100000000) {
					control->timeouts++;
					break;
				}
			if (frame[4] != serial - BATCH + 1 + i || frame[5] != pages[i] ||
			    frame[FRAME / 4 - 1] != frame[4] * (FRAME / 4 - 1))
				control->errors++;
			done[pages[i]] = frame[4];
		}
		control->frames += BATCH;
		for (i = 0; i < 2; i++) {
			u32 page = random() % NR_CPU_PAGES, n = control->cpu_writes + 1;

			*(volatile u32 *)(CPU_PAGES + page * 4096) = n;
			cpu_done[page] = n;
			control->cpu_writes = n;
		}
	}
}
