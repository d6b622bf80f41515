/* Symbols of glibc in the versions of glibc 2.28 (manylinux_2_28), for a library that is linked where glibc is newer.
 *
 * A linker binds a function to the newest version of it that its glibc has, and the library then loads nowhere that lacks
 * that version. glibc 2.34 took libpthread, libdl and librt into libc, with new versions of functions that stayed as they
 * were; exp and log lost their wrapper of errors in 2.29. Here each has a definition that jumps to the old version. It
 * hides glibc's newest from all objects of the library, and src/openmsa.map hides it from everybody else.
 *
 * What hub/CMakeLists.txt links is held against kernels' list of symbols in tests/python/pytorch/test_hub.py.
 */
.macro old version, names:vararg
  .irp name, \names
  .symver old_\name, \name@GLIBC_\version
  .globl \name
  .hidden \name
  .type \name, @function
\name:
  jmp *old_\name@GOTPCREL(%rip)
  .size \name, . - \name
  .endr
.endm

.text
old 2.2.5, exp, log
old 2.2.5, dlclose, dlerror, dlopen, dlsym, dlvsym
old 2.3.4, dlmopen
old 2.2.5, pthread_attr_getstack, pthread_attr_setstacksize, pthread_condattr_setpshared, pthread_create
old 2.2.5, pthread_detach, pthread_getattr_np, pthread_getspecific, pthread_join, pthread_key_create, pthread_key_delete
old 2.2.5, pthread_kill, pthread_mutex_trylock, pthread_mutexattr_destroy, pthread_mutexattr_init
old 2.2.5, pthread_mutexattr_setpshared, pthread_mutexattr_settype, pthread_once, pthread_rwlock_destroy
old 2.2.5, pthread_rwlock_init, pthread_rwlock_rdlock, pthread_rwlock_timedrdlock, pthread_rwlock_timedwrlock
old 2.2.5, pthread_rwlock_tryrdlock, pthread_rwlock_trywrlock, pthread_rwlock_unlock, pthread_rwlock_wrlock
old 2.2.5, pthread_rwlockattr_destroy, pthread_rwlockattr_init, pthread_rwlockattr_setpshared, pthread_setspecific
old 2.2.5, pthread_spin_destroy, pthread_spin_init, pthread_spin_lock, pthread_spin_trylock, pthread_spin_unlock
old 2.2.5, sem_destroy, sem_init, sem_post, sem_timedwait, sem_trywait, sem_wait
old 2.2.5, shm_open, shm_unlink

/* fstat64(descriptor, status) of 2.33 is __fxstat64(1, descriptor, status): 1 is the layout of the struct on x86-64. */
.globl fstat64
.hidden fstat64
.type fstat64, @function
fstat64:
  mov %rsi, %rdx
  mov %edi, %esi
  mov $1, %edi
  jmp *__fxstat64@GOTPCREL(%rip)
.size fstat64, . - fstat64

/* libstdc++ may ask for random bits by arc4random of 2.36: four bytes of getrandom. */
.globl arc4random
.hidden arc4random
.type arc4random, @function
arc4random:
  sub $24, %rsp
  lea 8(%rsp), %rdi
  mov $4, %esi
  xor %edx, %edx
  call *getrandom@GOTPCREL(%rip)
  mov 8(%rsp), %eax
  add $24, %rsp
  ret
.size arc4random, . - arc4random

/* libstdc++ asks this variable of 2.32 whether it may count references without atomic operations. 0: it may not. */
.bss
.globl __libc_single_threaded
.hidden __libc_single_threaded
.type __libc_single_threaded, @object
__libc_single_threaded:
  .zero 1
.size __libc_single_threaded, 1

.section .note.GNU-stack, "", @progbits
