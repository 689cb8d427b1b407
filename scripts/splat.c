// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mistakes for those detectors of the debug kernel that it has no test module
 * for, one for each "insmod splat.ko what=...". check-hostile.sh looks for the report.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>

static char *what = "";
module_param(what, charp, 0);

static DEFINE_MUTEX(mutex_a);
static DEFINE_MUTEX(mutex_b);
static DEFINE_SPINLOCK(spinlock);

static int __init splat_init(void)
{
	struct list_head a, other;
	LIST_HEAD(head);

	if (!strcmp(what, "lockdep")) {
		mutex_lock(&mutex_a);
		mutex_lock(&mutex_b);
		mutex_unlock(&mutex_b);
		mutex_unlock(&mutex_a);

		mutex_lock(&mutex_b);
		mutex_lock(&mutex_a);
		mutex_unlock(&mutex_a);
		mutex_unlock(&mutex_b);
	} else if (!strcmp(what, "atomic_sleep")) {
		spin_lock(&spinlock);
		might_sleep();
		spin_unlock(&spinlock);
	} else if (!strcmp(what, "list")) {
		list_add(&a, &head);
		head.next = &other;
		INIT_LIST_HEAD(&other);
		list_add(&a, &head);
	} else {
		return -EINVAL;
	}

	return 0;
}
module_init(splat_init);

static void __exit splat_exit(void)
{
}
module_exit(splat_exit);

MODULE_DESCRIPTION("Mistakes made on purpose");
MODULE_LICENSE("GPL");
