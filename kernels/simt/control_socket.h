/* Control of the stand-in from outside of its process: what tests of whole nodes ask of a node that
 * runs (control.h, "Control from outside").
 *
 * Owns: a thread and its socket, as long as the process.
 * Threads: kv_simt_control_socket_open from any, once. */
#ifndef KV_KERNELS_SIMT_CONTROL_SOCKET_H
#define KV_KERNELS_SIMT_CONTROL_SOCKET_H

/* Listens at FOLDER/PID.sock; where it cannot, that is a finding. */
void kv_simt_control_socket_open(const char *folder);

#endif
