// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does what the detectors of the debug kernel are there to find, once for each
 * "insmod splat.ko what=...". hostile.sh looks for the report.
 */
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static char *what = "";
module_param(what, charp, 0);

/* Not known to the compiler */
static volatile int eight = 8, forty = 40;

static int eight_ints[8];
static u32 shifted;
static void * volatile leaked;

static DEFINE_MUTEX(mutex_a);
static DEFINE_MUTEX(mutex_b);
static DEFINE_SPINLOCK(spinlock);

static void kasan(void)
{
	char *p = kmalloc(32, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(p);
	p[4 * eight] = 1;
	kfree(p);
}

static void ubsan_bounds(void)
{
	eight_ints[eight] = 1;
}

static void ubsan_shift(void)
{
	shifted = 1U << forty;
}

static void lockdep(void)
{
	mutex_lock(&mutex_a);
	mutex_lock(&mutex_b);
	mutex_unlock(&mutex_b);
	mutex_unlock(&mutex_a);

	mutex_lock(&mutex_b);
	mutex_lock(&mutex_a);
	mutex_unlock(&mutex_a);
	mutex_unlock(&mutex_b);
}

static void atomic_sleep(void)
{
	spin_lock(&spinlock);
	might_sleep();
	spin_unlock(&spinlock);
}

static void list(void)
{
	LIST_HEAD(head);
	struct list_head a, other;

	list_add(&a, &head);
	head.next = &other;
	INIT_LIST_HEAD(&other);
	list_add(&a, &head);
}

/* Some of them are found again on a stack, where the leak detector takes them for used */
static void leak(void)
{
	int i;

	for (i = 0; i < 50; i++)
		leaked = kmalloc(1000, GFP_KERNEL);
	leaked = NULL;
}

/* Both expect that the detector was set to two seconds */
static void soft_lockup(void)
{
	unsigned long end = jiffies + 8 * HZ;

	preempt_disable();
	while (time_before(jiffies, end))
		cpu_relax();
	preempt_enable();
}

static void hung_task(void)
{
	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule_timeout(8 * HZ);
}

/* Two at a time, without a lock, for two seconds */
static unsigned long raced;

static int racer(void *unused)
{
	unsigned long end = jiffies + 2 * HZ;

	while (time_before(jiffies, end)) {
		raced++;
		cond_resched();
	}

	return 0;
}

static void kcsan(void)
{
	struct task_struct *task = kthread_create(racer, NULL, "splat");

	if (IS_ERR(task))
		return;
	get_task_struct(task);
	wake_up_process(task);
	racer(NULL);
	kthread_stop_put(task);
}

static const struct {
	const char *what;
	void (*fn)(void);
} splats[] = {
	{ "kasan", kasan },
	{ "kcsan", kcsan },
	{ "ubsan_bounds", ubsan_bounds },
	{ "ubsan_shift", ubsan_shift },
	{ "lockdep", lockdep },
	{ "atomic_sleep", atomic_sleep },
	{ "list", list },
	{ "leak", leak },
	{ "soft_lockup", soft_lockup },
	{ "hung_task", hung_task },
};

static int __init splat_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(splats); i++) {
		if (!strcmp(what, splats[i].what)) {
			pr_info("splat: %s\n", what);
			splats[i].fn();
			return 0;
		}
	}

	return -EINVAL;
}
module_init(splat_init);

static void __exit splat_exit(void)
{
}
module_exit(splat_exit);

MODULE_DESCRIPTION("Mistakes made on purpose");
MODULE_LICENSE("GPL");
