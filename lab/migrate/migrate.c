// SPDX-License-Identifier: GPL-2.0
/*
 * Migrate a virtual machine with an assigned igb from one QEMU to another, and see
 * whether the destination has all that the source had.
 *
 * usage: migrate [NAME=VALUE...]
 *   mode=get|manual|iommufd|iommufd-manual   how the dirty log is read
 *   leaf=4k|2m      the memory's pages, and so the IOMMU's
 *   pattern=uniform|hot|sweep|narrow, seed=N
 *   rate=N          DMA frames for each 1000 pages that are sent
 *   shift=N         x-clear-bitmap-shift
 *   qemu=FILE       the source's QEMU
 *   downtime=MS     at 25 MB/s
 *   relax=N         4 s of downtime are allowed after N pages
 *   pages=N         give up after so many pages
 *   cancel=N        cancel after N pages, and migrate again
 *   fail_clear=N    the N-th CLEAR_BITMAP and those after it fail
 *   auto=1          enable-migration=auto
 *   calls=0         do not look at the calls that were made
 *
 * The stream goes through this program, which lets the device write for each page
 * that it has forwarded, and holds the stream until that has been done: what is
 * counted depends neither on time nor on the load of the machine.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "layout.h"

#define PAGE	4096u
#define WIRE	4104u		/* of a page in the stream */

static const char *mode = "manual", *leaf = "4k", *pattern = "uniform", *qemu = "/migrate/qemu";
static const char *pages_max = "80000", *seed = "1", *rate = "500", *shift = "9";
static const char *cancel = "0", *fail_clear = "0", *automatic = "0", *downtime = "100", *calls = "1", *relax = "0";

static struct { const char *name, **value; } options[] = {
	{ "mode", &mode }, { "leaf", &leaf }, { "pattern", &pattern }, { "seed", &seed },
	{ "rate", &rate }, { "shift", &shift }, { "qemu", &qemu }, { "pages", &pages_max },
	{ "cancel", &cancel }, { "fail_clear", &fail_clear }, { "auto", &automatic },
	{ "downtime", &downtime }, { "calls", &calls }, { "relax", &relax },
};

struct vm {
	const char *name, *device;
	pid_t pid;
	int qmp;
	char line[65536];
	size_t filled;
	unsigned char *ram;
	volatile struct control *control;
};

static struct vm src = { .name = "src", .device = "0000:01:00.0", .qmp = -1 };
static struct vm dst = { .name = "dst", .device = "0000:02:00.0", .qmp = -1 };

static unsigned long long forwarded, at_stop;	/* bytes of the stream */
static unsigned long long syncs;
static bool stopped;

static void die(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	printf("# ");
	vprintf(format, ap);
	printf("\n");
	va_end(ap);
	fflush(stdout);
	exit(system("tail -n 5 /tmp/src.log /tmp/dst.log | cut -c1-300 | sed 's/^/# /'") ? 1 : 1);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static int unix_socket(const char *path, bool listening)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), i;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (listening) {
		unlink(path);
		if (bind(fd, (void *)&address, sizeof(address)) || listen(fd, 1))
			die("%s: %s", path, strerror(errno));
		return fd;
	}
	for (i = 0; i < 1200; i++) {
		if (!connect(fd, (void *)&address, sizeof(address)))
			return fd;
		usleep(50000);
	}
	die("%s: %s", path, strerror(errno));
	return -1;
}

/* A line of QMP: the event STOP tells how much was sent until then */
static bool qmp_line(struct vm *vm, char *line, double timeout)
{
	double end = now() + timeout;
	char *nl;

	for (;;) {
		struct pollfd p = { .fd = vm->qmp, .events = POLLIN };
		ssize_t n;

		nl = memchr(vm->line, '\n', vm->filled);
		if (nl) {
			size_t len = nl - vm->line;

			memcpy(line, vm->line, len);
			line[len] = 0;
			vm->filled -= len + 1;
			memmove(vm->line, nl + 1, vm->filled);
			if (strstr(line, "\"event\": \"STOP\"") && vm == &src && !stopped) {
				stopped = true;
				at_stop = forwarded;
			}
			if (!strstr(line, "\"event\""))
				return true;
			continue;
		}
		if (poll(&p, 1, timeout > 0 ? 100 : 0) > 0) {
			n = read(vm->qmp, vm->line + vm->filled, sizeof(vm->line) - vm->filled);
			if (n <= 0)
				die("%s: QEMU is gone", vm->name);
			vm->filled += n;
		} else if (now() >= end) {
			return false;
		}
	}
}

static void qmp_send(struct vm *vm, const char *command)
{
	if (write(vm->qmp, command, strlen(command)) < 0)
		die("%s: %s", vm->name, strerror(errno));
}

static char *qmp(struct vm *vm, const char *command)
{
	static char line[65536];

	qmp_send(vm, command);
	if (!qmp_line(vm, line, 60))
		die("%s: no answer to %s", vm->name, command);
	if (strstr(line, "\"error\""))
		die("%s: %s: %s", vm->name, command, line);
	return line;
}

static unsigned long long number(const char *json, const char *key)
{
	char pattern[64];
	const char *p;

	snprintf(pattern, sizeof(pattern), "\"%s\": ", key);
	p = strstr(json, pattern);
	return p ? strtoull(p + strlen(pattern), NULL, 10) : 0;
}

static void make_ram(struct vm *vm)
{
	bool huge = !strcmp(leaf, "2m");
	char path[64];
	unsigned int i, j;
	int fd;

	snprintf(path, sizeof(path), "/%s/%s", huge ? "huge" : "small", vm->name);
	unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, RAM_SIZE))
		die("%s: %s", path, strerror(errno));
	if (vm->ram)
		munmap(vm->ram, RAM_SIZE);
	vm->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vm->ram == MAP_FAILED)
		die("%s: %s", path, strerror(errno));
	/* Neighbours in the file are no neighbours in memory: no large leaves */
	for (j = 0; j < 2; j++)
		for (i = j; i < RAM_SIZE / PAGE; i += 2)
			vm->ram[i * PAGE] = 0;
	vm->control = (void *)(vm->ram + CONTROL);
	close(fd);
}

static void start(struct vm *vm)
{
	bool fd = !strncmp(mode, "iommufd", 7);
	bool manual = !!strstr(mode, "manual");
	char memory[160], device[256], socket[64], log[32], line[65536], clear[64];

	make_ram(vm);
	snprintf(socket, sizeof(socket), "/tmp/%s.qmp", vm->name);
	unlink(socket);
	snprintf(log, sizeof(log), "/tmp/%s.log", vm->name);
	unlink(log);
	if (vm == &src) {
		vm->control->seed = atoi(seed);
		vm->control->pattern = !strcmp(pattern, "hot") ? HOT : !strcmp(pattern, "sweep") ? SWEEP :
				       !strcmp(pattern, "narrow") ? NARROW : UNIFORM;
	} else {
		unlink("/tmp/dst.in");
	}
	snprintf(memory, sizeof(memory), "memory-backend-file,id=ram,size=64M,share=on,mem-path=/%s/%s",
		 !strcmp(leaf, "2m") ? "huge" : "small", vm->name);
	snprintf(device, sizeof(device), "vfio-pci,host=%s,addr=5,rombar=0,enable-migration=%s,x-manual-dirty-clear=%s%s",
		 vm->device, atoi(automatic) ? "auto" : "on", manual ? "auto" : "off",
		 fd ? ",iommufd=iommufd0" : "");
	snprintf(clear, sizeof(clear), "migration.x-clear-bitmap-shift=%s", shift);
	vm->pid = fork();
	if (!vm->pid) {
		int out = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		const char *argv[48] = {
			vm == &src ? qemu : "/migrate/qemu", "-M",
			"q35,memory-backend=ram,usb=off,sata=off,smbus=off,i8042=off", "-accel", "tcg,thread=single",
			"-m", "64M", "-object", memory, "-nodefaults", "-no-user-config", "-display", "none",
			"-bios", "/migrate/firmware", "-global", clear, "-qmp", NULL,
		};
		char server[96];
		int i = 0;

		snprintf(server, sizeof(server), "unix:%s,server=on,wait=off", socket);
		while (argv[i])
			i++;
		argv[i++] = server;
		if (fd) {
			argv[i++] = "-object";
			argv[i++] = "iommufd,id=iommufd0";
		}
		argv[i++] = "-device";
		argv[i++] = device;
		if (vm == &dst) {
			argv[i++] = "-S";
			argv[i++] = "-incoming";
			argv[i++] = "unix:/tmp/dst.in";
		}
		argv[i++] = "-trace";
		argv[i++] = "vfio_legacy_dirty_bitmap";
		argv[i++] = "-trace";
		argv[i++] = "iommufd_backend_get_dirty_bitmap";
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (vm == &src && atoi(fail_clear)) {
			setenv("LD_PRELOAD", "/migrate/fail_clear.so", 1);
			setenv("FAIL_CLEAR", fail_clear, 1);
		}
		dup2(out, 1);
		dup2(out, 2);
		execv(argv[0], (char **)argv);
		_exit(127);
	}
	vm->filled = 0;
	vm->qmp = unix_socket(socket, false);
	if (!qmp_line(vm, line, 60))
		die("%s: no greeting", vm->name);
	qmp(vm, "{\"execute\": \"qmp_capabilities\"}\n");
}

static void stop(struct vm *vm)
{
	if (vm->qmp < 0)
		return;
	close(vm->qmp);
	vm->qmp = -1;
	kill(vm->pid, SIGKILL);
	waitpid(vm->pid, NULL, 0);
}

static void wait_frames(struct vm *vm, unsigned int frames, double timeout)
{
	double end = now() + timeout;

	while (vm->control->ready != MAGIC || (int)(frames - vm->control->frames) > 0) {
		if (now() > end)
			die("%s: the firmware stands still: ready %x, %u of %u frames, %u errors, %u timeouts",
			    vm->name, vm->control->ready, vm->control->frames, frames,
			    vm->control->errors, vm->control->timeouts);
		usleep(10000);
	}
}

enum outcome { COMPLETED, CANCELLED, ENDLESS };

/* What query-migrate said last */
static char status[65536];

static enum outcome migrate(unsigned long cancel_after)
{
	unsigned int base = src.control->budget, seen = src.control->frames;
	int server = unix_socket("/tmp/src.out", true), in, out;
	double moved = now(), asked = 0;
	enum outcome outcome = COMPLETED;
	bool pending = false, cancelled = false, relaxed = false, eof = false;
	static char buffer[16384];

	forwarded = at_stop = 0;
	stopped = false;
	out = unix_socket("/tmp/dst.in", false);
	snprintf(buffer, sizeof(buffer),
		 "{\"execute\": \"migrate-set-parameters\", \"arguments\": {\"max-bandwidth\": 4000000000, "
		 "\"avail-switchover-bandwidth\": 25000000, \"downtime-limit\": %s}}\n", downtime);
	qmp(&src, buffer);
	qmp(&src, "{\"execute\": \"migrate\", \"arguments\": {\"uri\": \"unix:/tmp/src.out\"}}\n");
	in = accept(server, NULL, NULL);
	close(server);
	for (;;) {
		struct pollfd p[2] = { { .fd = src.qmp, .events = POLLIN }, { .fd = in, .events = POLLIN } };
		bool held;

		if (src.control->frames != seen) {
			seen = src.control->frames;
			moved = now();
		}
		/* It stands still for good when the machine has been stopped */
		held = (int)(src.control->budget - seen) >= (int)(2 * BATCH) && now() < moved + 0.5 && !stopped;
		if (poll(p, held || eof ? 1 : 2, held ? 1 : 20) > 0 && !held && p[1].revents) {
			ssize_t n = read(in, buffer, sizeof(buffer)), done = 0;

			eof = n <= 0;
			while (done < n) {
				ssize_t w = write(out, buffer + done, n - done);

				if (w <= 0 && !cancelled)
					die("the destination does not listen any more");
				if (w <= 0)
					break;
				done += w;
			}
			if (!eof)
				forwarded += n;
			src.control->budget = base + forwarded / WIRE * atoi(rate) / 1000;
		}
		if (!cancelled && ((cancel_after && forwarded / WIRE > cancel_after) ||
				   forwarded / WIRE > strtoull(pages_max, NULL, 10))) {
			if (pending)
				qmp_line(&src, status, 60);
			pending = false;
			qmp(&src, "{\"execute\": \"migrate_cancel\"}\n");
			cancelled = true;
			outcome = cancel_after ? CANCELLED : ENDLESS;
		}
		if (atoi(relax) && !relaxed && forwarded / WIRE > strtoull(relax, NULL, 10)) {
			if (pending)
				qmp_line(&src, status, 60);
			pending = false;
			qmp(&src, "{\"execute\": \"migrate-set-parameters\", \"arguments\": "
			    "{\"downtime-limit\": 4000}}\n");
			relaxed = true;
		}
		if (!pending && now() > asked + 0.1) {
			qmp_send(&src, "{\"execute\": \"query-migrate\"}\n");
			pending = true;
			asked = now();
		}
		if (pending && qmp_line(&src, status, 0)) {
			pending = false;
			if (strstr(status, "dirty-sync-count"))
				syncs = number(status, "dirty-sync-count");
			if (strstr(status, "\"status\": \"failed\""))
				die("the migration failed: %s", status);
			if (strstr(status, "\"status\": \"cancelled\""))
				break;
			if (strstr(status, "\"status\": \"completed\"") && eof)
				break;
		}
	}
	close(in);
	close(out);
	return outcome;
}

/* A page that is zero is no page of the stream; each other one is sent at least once */
static unsigned int floor_pages(void)
{
	static const unsigned char zero[PAGE];
	unsigned int i, n = 0;

	for (i = 0; i < RAM_SIZE / PAGE; i++)
		n += !!memcmp(src.ram + i * PAGE, zero, PAGE);
	return n;
}

static unsigned int count_calls(const char *what, unsigned long long size_min)
{
	static char line[4096];
	unsigned int n = 0;
	FILE *f = fopen("/tmp/src.log", "r");

	while (f && fgets(line, sizeof(line), f)) {
		char *size = strstr(line, "size=0x");

		if (strstr(line, what) && size && strtoull(size + 5, NULL, 16) >= size_min)
			n++;
	}
	if (f)
		fclose(f);
	return n;
}

int main(int argc, char **argv)
{
	unsigned int i, lost = 0, stale = 0, frames, differ, get, noclear, clear, all;
	unsigned long long pages;
	volatile unsigned int *issued, *done, *cpu;
	enum outcome outcome;
	bool ok;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	for (; argc > 1; argc--, argv++)
		for (i = 0; i < sizeof(options) / sizeof(*options); i++) {
			size_t len = strlen(options[i].name);

			if (!strncmp(argv[1], options[i].name, len) && argv[1][len] == '=')
				*options[i].value = argv[1] + len + 1;
		}

	start(&src);
	src.control->budget = 1024;
	start(&dst);
	wait_frames(&src, 1024 - BATCH, 60);
	if (atoi(cancel)) {
		if (migrate(atoi(cancel)) != CANCELLED)
			die("the migration ended before it was cancelled");
		stop(&dst);
		/* It goes on where it was */
		src.control->budget = src.control->frames + 1024;
		wait_frames(&src, src.control->budget - BATCH, 60);
		start(&dst);
	}
	frames = src.control->frames;
	outcome = migrate(0);
	frames = src.control->frames - frames;
	pages = outcome == COMPLETED ? number(status, "normal") : forwarded / WIRE;

	get = count_calls("vfio_legacy_dirty_bitmap flags=0x4 ", 32 << 20);
	noclear = count_calls("vfio_legacy_dirty_bitmap flags=0x8 ", 32 << 20);
	clear = count_calls("vfio_legacy_dirty_bitmap flags=0x10 ", 0);
	if (!strncmp(mode, "iommufd", 7)) {
		all = count_calls("iommufd_backend_get_dirty_bitmap", 0);
		get = count_calls("flags=0x0 ", 32 << 20);
		noclear = count_calls("flags=0x1 ", 32 << 20);
		clear = all - count_calls("iommufd_backend_get_dirty_bitmap", 32 << 20);
	}

	if (outcome == ENDLESS) {
		printf("row\t%s\t%s\t%s\t%s\tendless\t%u\t%llu\t%llu\t-\t%u\t%u\t%u\t%u\n", mode, leaf, pattern,
		       seed, floor_pages(), pages, syncs, frames, get, noclear, clear);
		stop(&src);
		stop(&dst);
		return 2;
	}

	for (i = 0; i < 600 && !strstr(qmp(&dst, "{\"execute\": \"query-migrate\"}\n"), "\"completed\""); i++)
		usleep(50000);
	if (i == 600)
		die("the destination does not complete");

	for (i = 0; i < RAM_SIZE / PAGE; i++) {
		unsigned int skip = i == CONTROL / PAGE ? offsetof(struct control, ready) : 0;

		if (memcmp(src.ram + i * PAGE + skip, dst.ram + i * PAGE + skip, PAGE - skip)) {
			if (lost++ < 4)
				printf("# page %#x differs\n", i * PAGE);
		}
	}
	/* The same once more, without the source */
	issued = (void *)(dst.ram + ISSUED);
	done = (void *)(dst.ram + DONE);
	cpu = (void *)(dst.ram + CPU_DONE);
	for (i = 0; i < NR_DMA_PAGES; i++) {
		unsigned int serial = ((volatile unsigned int *)(dst.ram + DMA_PAGES + i * PAGE))[4];

		stale += serial < done[i] || serial > issued[i];
	}
	for (i = 0; i < NR_CPU_PAGES; i++) {
		unsigned int serial = *(volatile unsigned int *)(dst.ram + CPU_PAGES + i * PAGE);

		stale += serial < cpu[i] || serial > dst.control->cpu_writes + 1;
	}

	differ = dst.control->frames;
	dst.control->budget = differ + 1024;
	qmp(&dst, "{\"execute\": \"cont\"}\n");
	wait_frames(&dst, differ + 1024 - BATCH, 60);

	ok = !lost && !stale && !dst.control->errors && !dst.control->timeouts;
	printf("row\t%s\t%s\t%s\t%s\t%s\t%u\t%llu\t%llu\t%llu\t%u\t%u\t%u\t%u\n", mode, leaf, pattern, seed,
	       ok ? "equal" : "LOST", floor_pages(), pages, syncs, (forwarded - at_stop) / WIRE, frames, get,
	       noclear, clear);
	if (!ok)
		printf("# %u pages differ, %u have an old serial, %u errors, %u timeouts\n", lost, stale,
		       dst.control->errors, dst.control->timeouts);
	if (atoi(calls) && (!!strstr(mode, "manual") != (clear > 0 && noclear > 0) ||
			    (strstr(mode, "manual") ? get > 2 : !get))) {
		printf("# not the calls of this mode: %u that clear all, %u that clear nothing, %u of a chunk\n",
		       get, noclear, clear);
		ok = false;
	}
	stop(&src);
	stop(&dst);
	return ok ? 0 : 1;
}
