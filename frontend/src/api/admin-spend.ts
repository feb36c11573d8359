/** What the admin pages of spending read: allocations, requests, pools and the overview. */
import { infiniteQueryOptions, keepPreviousData, queryOptions } from '@tanstack/react-query'

import { api, everything, ok, type Schemas } from './client'
import type { paths } from './schema'
import type { Outcome } from './queries'

export type AllocationRow = Schemas['AllocationDocument']
export type AllocationInput = Schemas['AllocationInput']
export type AllocationPatch = Schemas['AllocationPatch']
export type MemberRow = Schemas['MemberRecord']
export type PoolRow = Schemas['PoolDocument']
export type PoolLimit = Schemas['LimitStanding']
export type RebalanceRun = Schemas['RebalanceDocument']
export type RequestRow = Schemas['RequestDocument']

const PAGE = 25
const LONG_PAGE = 500

/** Everything that these pages show is asked again under this name. */
export const SPEND = ['admin', 'spend']

// Who and what there is: short lists, for names and choices

export const membersQuery = queryOptions({
  queryKey: [...SPEND, 'members'],
  staleTime: 30_000,
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/members', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export const modelSlugsQuery = queryOptions({
  queryKey: [...SPEND, 'models'],
  staleTime: 30_000,
  queryFn: async () => {
    const models = await everything((cursor) =>
      ok(api.GET('/api/admin/models', { params: { query: { cursor, limit: LONG_PAGE } } })),
    )
    return models.map((model) => model.slug).sort()
  },
})

export const poolsQuery = queryOptions({
  queryKey: [...SPEND, 'pools'],
  meta: { live: ['standing'] },
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/pools', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

// Allocations

export type AllocationsAsked = Omit<
  NonNullable<paths['/api/admin/allocations']['get']['parameters']['query']>,
  'cursor' | 'limit'
>

/** Those that are asked for, page by page: the server searches and sorts. */
export const foundAllocationsQuery = (asked: AllocationsAsked) =>
  infiniteQueryOptions({
    queryKey: [...SPEND, 'allocations', 'found', asked],
    meta: { live: ['standing'] },
    placeholderData: keepPreviousData,
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
    queryFn: ({ pageParam: cursor }) =>
      ok(api.GET('/api/admin/allocations', { params: { query: { ...asked, cursor, limit: PAGE } } })),
  })

/** All of them, for their names. */
export const allocationsQuery = queryOptions({
  queryKey: [...SPEND, 'allocations'],
  meta: { live: ['standing'] },
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/allocations', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

// Requests

export const openRequestsQuery = queryOptions({
  queryKey: [...SPEND, 'requests', 'open'],
  meta: { live: ['requests'] },
  queryFn: () =>
    everything((cursor) =>
      ok(
        api.GET('/api/admin/requests', {
          params: { query: { cursor, limit: LONG_PAGE, status: 'open' } },
        }),
      ),
    ),
})

export const requestsQuery = infiniteQueryOptions({
  queryKey: [...SPEND, 'requests', 'all'],
  meta: { live: ['requests'] },
  initialPageParam: undefined as string | undefined,
  getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
  queryFn: ({ pageParam: cursor }) =>
    ok(api.GET('/api/admin/requests', { params: { query: { cursor, limit: PAGE } } })),
})

// Sharing out

export const rebalanceQuery = (id: string) =>
  queryOptions({
    queryKey: [...SPEND, 'rebalance', id],
    queryFn: () =>
      ok(
        api.POST('/api/admin/pools/{id}/rebalance', {
          params: { path: { id } },
          body: { dry_run: true },
        }),
      ),
  })

export const rebalancesQuery = (id: string) =>
  infiniteQueryOptions({
    queryKey: [...SPEND, 'rebalances', id],
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
    queryFn: ({ pageParam: cursor }) =>
      ok(
        api.GET('/api/admin/pools/{id}/rebalances', {
          params: { path: { id }, query: { cursor, limit: PAGE } },
        }),
      ),
  })

// The overview

export type Overview = Schemas['OverviewDocument']

export const overviewQuery = queryOptions({
  queryKey: [...SPEND, 'overview'],
  meta: { live: ['standing', 'calls', 'sessions', 'requests', 'alerts'] },
  queryFn: () => ok(api.GET('/api/admin/overview')),
})

// The calls behind a figure

export const REFUSALS = [
  'rejected_cost_quota_exceeded',
  'rejected_quota_exceeded',
  'rejected_chat_limit_exceeded',
  'rejected_quota_reserved',
  'rejected_inactive',
  'rejected_model_mismatch',
  'rejected_unavailable',
] as const satisfies readonly Outcome[]

export interface CallsAsked {
  allocation_id?: string | undefined
  member_id?: string | undefined
  model?: string | undefined
  outcome?: Outcome | undefined
  from?: string | undefined
}

const CALLS = 50
const REFUSED = 100

/** `refused`: of each kind of refusal the newest, together; the server filters by one outcome. */
export const callsQuery = (asked: CallsAsked, refused: boolean) =>
  infiniteQueryOptions({
    queryKey: [...SPEND, 'calls', asked, refused],
    meta: { live: ['calls'] },
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
    queryFn: async ({ pageParam: cursor }) => {
      const page = (query: CallsAsked & { cursor?: string | undefined; limit: number }) =>
        ok(api.GET('/api/admin/calls', { params: { query } }))
      if (!refused) return page({ ...asked, cursor, limit: CALLS })
      const kinds = await Promise.all(
        REFUSALS.map((outcome) => page({ ...asked, outcome, limit: REFUSED })),
      )
      const items = kinds.flatMap((one) => one.items)
      return { items: items.sort((a, b) => (a.id < b.id ? 1 : -1)), next: null }
    },
  })

// What an edit would do, and many edits at once

export type Preview = Schemas['PreviewDocument']
export type CapPreview = Preview['usd']
export type BulkResult = Schemas['BulkDocument']

export interface Caps {
  quota_cost_usd_per_month: string | null
  quota_tokens_per_month: number | null
}

export const previewQuery = (id: string, caps: Caps) =>
  queryOptions({
    queryKey: [...SPEND, 'preview', id, caps],
    staleTime: 0,
    gcTime: 0,
    meta: { live: ['standing', 'sessions'] },
    queryFn: () =>
      ok(api.POST('/api/admin/allocations/{id}/preview', { params: { path: { id } }, body: caps })),
  })
