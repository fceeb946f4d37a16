/* A record: one object on disk, self-describing: its header holds all that is needed to rebuild its
 * index entry and to prove that the bytes are the ones that were stored.
 *
 *   0                     header_bytes                                          stored_bytes
 *   | header, words, unit checksums, unit lengths | units, encoded | zeros to 4 KiB |
 *             \_________ encrypted, with tags ________/ \_ encrypted _/
 *
 * Rules:
 *  1. A record starts at a multiple of 4 KiB and is one. Header and decoded bytes are under
 *     checksums; the padding is zero and is checked to be.
 *  2. The header's checksum covers the whole header. It holds the segment's generation: a record of
 *     an earlier life of its place is never taken for a present one.
 *  3. Each unit's checksum is over its decoded bytes; the object's checksum is over the units' and
 *     is bound to key and layout.
 *  4. key = SHA-256 of parent and words (marked with the group: identity.h): a header that
 *     contradicts itself is damaged.
 *  5. An encrypted record (version 3 or 5) shows nothing of words, checksums, units, their lengths.
 *     Its key is made from its tenant's secret and 256 random bits of its own, which are drawn each
 *     time that a record is written: so the nonces, which number the units, never come twice under
 *     one key, as long as no two of them are equal (2^-161 for 2^48 records). A unit is decrypted
 *     alone; its tag also covers all of the header that does not change in an object's life, key,
 *     namespace, layout, position and group among it, and not where the record lies: it may be
 *     moved as it is. Checksums, now encrypted, are proved as in any record: they reach from the
 *     memory that an object was in to the memory that it comes to, tags only from file to file.
 *  6. A record that is the place of no object any more has a *marker* in its first page, which says
 *     how long the record was, so that a scan steps over it. All of a marker lies in the first 512
 *     bytes: a torn write leaves the old first sector or the whole marker.
 *
 * The byte layout is in docs/formats.md.
 * Threads: any; free of state. */
#ifndef KV_KVSTORE_DISK_RECORD_H
#define KV_KVSTORE_DISK_RECORD_H

#include "kvstore/crypt/keyring.h"
#include "kvstore/layout.h"

enum {
    KV_PAGE_BYTES = 4096,
    KV_ORIGIN_BYTES = KVIST_ORIGIN_BYTES_MAX + 1,
    KV_ARITHMETIC_BYTES = KVIST_ARITHMETIC_BYTES_MAX + 1,
    KV_TENANT_BYTES = KVIST_TENANT_BYTES_MAX + 1,
    KV_RECORD_ID_BYTES = 32,
};

/* What a header says, but for words and checksums. */
typedef struct {
    kvist_key_t name_space, key;
    kvist_key_t parent; /* the previous block's key, or the namespace: of every group's objects */
    uint64_t generation;
    uint32_t position; /* number of the block in its context */
    uint64_t created_unix_ns, used_unix_ns;
    uint32_t expires_s, pin_until_s; /* unix; 0: none */
    uint8_t priority, group;
    /* ended and padded with zeros: */
    char origin[KV_ORIGIN_BYTES], arithmetic[KV_ARITHMETIC_BYTES], tenant[KV_TENANT_BYTES];
    kvist_codec_t codec;
    uint64_t stored_bytes; /* header, payload and padding */
    bool sealed;           /* encrypted, with the key: */
    kv_key_id_t key_id;
} kv_record_t;

/* What a record is encrypted with. */
typedef struct {
    kv_key_id_t id;
    kv_secret_t secret;                    /* of the record's tenant */
    uint8_t record_id[KV_RECORD_ID_BYTES]; /* random bytes, for this one record */
} kv_record_key_t;

/* Of a record of a block with these words, encrypted or not. */
size_t kv_record_header_bytes(const kv_layout_t *layout, const uint32_t *words, bool sealed);

/* Of the longest. */
size_t kv_record_header_bytes_max(const kv_layout_t *layout);

/* The most bytes that a record of this layout takes, encrypted or not. */
size_t kv_record_bytes_max(const kv_layout_t *layout);

/* What it takes to read one: see scratch below. */
size_t kv_record_scratch_bytes(const kv_layout_t *layout);

/* Writes a record to `at` (kv_record_bytes_max bytes, any of which may change). object: the block's
 * bytes, [object_bytes]; may be at + kv_record_header_bytes(), where they stay if codec is none.
 * record->codec is a wish: codec none is used where encoding saves no page. key: NULL: in clear; a
 * key serves for one record. Fills record->stored_bytes, codec, sealed and key_id. The record is
 * not valid before kv_record_sign. expected: the checksums of the units, [unit_count], or NULL;
 * false: they differ, and there is no record. */
bool kv_record_write(const kv_layout_t *layout, kv_record_t *record, const uint32_t *words,
    const void *object, const uint64_t *expected, const kv_record_key_t *key, void *at);

/* An object that the codec packed elsewhere: what kv_record_write would have made of it. */
typedef struct {
    size_t payload_bytes;
    const uint32_t *lengths;   /* [unit_count], as stored */
    const uint64_t *checksums; /* [unit_count], of the units as they were */
} kv_record_packed_t;

/* Whether it saves a page: else the record has codec none. */
bool kv_record_packed_saves(const kv_layout_t *layout, size_t payload_bytes);

/* As kv_record_write, of an object whose payload is in place, at + kv_record_header_bytes(), and
 * saves a page. */
void kv_record_write_packed(const kv_layout_t *layout, kv_record_t *record, const uint32_t *words,
    const kv_record_packed_t *packed, const kv_record_key_t *key, void *at);

/* Enters the generation and the header's checksum: the last step, when the place is known. */
void kv_record_sign(void *at, uint64_t generation);

/* Enters what changes in an object's life (last use, expiry, pin) into a record that was proved,
 * and gives what only the record says (created, codec). kv_record_sign must follow. */
void kv_record_renew(void *at, kv_record_t *record);

/* Reads a header of any layout out of `bytes` bytes. KV_MISSING: no record starts here; KV_CORRUPT:
 * one did, and it is damaged. */
kv_status_t kv_record_read(const void *at, size_t bytes, kv_record_t *record_out);

/* Fills a page with the marker of a record of stored_bytes in a segment's life. */
void kv_record_write_marker(void *page, uint64_t generation, uint64_t stored_bytes);

/* Reads a marker out of a page. KV_MISSING: there is none, or one of another life; KV_CORRUPT: its
 * checksum or its length is wrong. */
kv_status_t kv_record_read_marker(
    const void *page, uint64_t generation, uint64_t *stored_bytes_out);

/* Whether the header, which was read, is of an object of this layout. */
bool kv_record_fits(const kv_layout_t *layout, const void *at);

/* A record whose header was proved: what it takes to prove and to decode its units one by one. */
typedef struct {
    kv_record_t record;
    const uint32_t *words;     /* [block_words] */
    const uint64_t *checksums; /* [unit_count], of the decoded units */
    const char *lengths, *payload;
    uint64_t payload_bytes;
    char *scratch;
    /* Of an encrypted record: */
    kv_cipher_t *cipher; /* else NULL */
    const char *tags;
    kvist_key_t binding;
} kv_record_view_t;

/* What a reader gives: the store's keys (NULL: it has none), and memory for words, and for what
 * must be decrypted or decoded, kv_record_scratch_bytes. */
typedef struct {
    kv_keyring_t *keys;
    void *scratch;
} kv_record_reader_t;

/* Proves that what starts at `at` is the record that was expected (its generation, name_space, key,
 * parent, position, group), as far as its header goes; the payload need not be there: that the
 * padding is zero is checked where `bytes` are all of it. KV_CORRUPT: anything differs; KV_MISSING:
 * it may be right, but its key is gone. The record is left as it is. A view that was opened is
 * closed. */
kv_status_t kv_record_open(const kv_layout_t *layout, const kv_record_reader_t *reader,
    const kv_record_t *expected, const void *at, size_t bytes, kv_record_view_t *view_out);
void kv_record_close(kv_record_view_t *view);

/* The object's bytes: in place, or decrypted and decoded into the scratch memory. Against the
 * checksums they are not proved. KV_CORRUPT: nobody wrote them with this key; no encoder made them.
 */
kv_status_t kv_record_object(
    const kv_layout_t *layout, const kv_record_view_t *view, const void **object_out);

/* The object as it is packed, for who unpacks it: its payload in place, or decrypted into the
 * scratch memory, of as many bytes as the lengths say. KV_CORRUPT: as kv_record_object. */
kv_status_t kv_record_packed(const kv_layout_t *layout, const kv_record_view_t *view,
    const char **payload_out, const uint32_t **lengths_out);

/* Proves the whole record and gives its object, in place or in scratch, and its words. */
kv_status_t kv_record_verify(const kv_layout_t *layout, const kv_record_reader_t *reader,
    const kv_record_t *expected, const void *at, size_t bytes, const void **object_out,
    uint32_t *words_out);

#endif
