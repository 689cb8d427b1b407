/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The memory of the virtual machine (64 MiB), as its firmware (firmware.c) and the
 * program that watches it through the file behind it (migrate.c) see it.
 */
#define RAM_SIZE	(64u << 20)
#define CONTROL		0x100000u	/* struct control */
#define TX_RING		0x101000u
#define RX_RING		0x102000u
#define TX_BUFFERS	0x110000u	/* one of 2 KiB a descriptor */
#define ISSUED		0x200000u	/* a serial a page: given to the device */
#define DONE		0x210000u	/* seen to have arrived */
#define CPU_DONE	0x220000u	/* written by the CPU */
#define CPU_PAGES	0x800000u
#define DMA_PAGES	0x1000000u
#define NR_CPU_PAGES	1024u
#define NR_DMA_PAGES	8192u

#define RING		64u
#define BATCH		16u
#define FRAME		256u		/* bytes */
#define MAGIC		0x6d696772u

enum pattern { UNIFORM, HOT, SWEEP, NARROW };

struct control {
	/* Written by the watcher, which no dirty log sees */
	unsigned int budget;		/* the frames that may be sent */
	unsigned int seed;
	unsigned int pattern;
	unsigned int reserved[13];
	/* Written by the firmware */
	unsigned int ready;		/* MAGIC */
	unsigned int frames;		/* that have arrived */
	unsigned int errors;		/* other contents than were sent */
	unsigned int timeouts;
	unsigned int cpu_writes;
	unsigned int tail;		/* of both rings */
	unsigned int random;
};
