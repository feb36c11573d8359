/** What the admin's pages of setting up read: providers to audit. See `queries.ts`. */
import { infiniteQueryOptions, keepPreviousData, queryOptions } from '@tanstack/react-query'

import { api, everything, ok, type Schemas } from './client'
import type { paths } from './schema'

export type Provider = Schemas['ProviderRecord']
export type Model = Schemas['ModelRecord']
export type Price = Schemas['PriceDocument']
export type Rate = Schemas['RateRecord']
export type Suggestion = Schemas['SuggestionDocument']
export type Repricing = Schemas['RepricingDocument']
export type Member = Schemas['MemberRecord']
export type Allocation = Schemas['AllocationDocument']
export type Destination = Schemas['DestinationRecord']
export type Rule = Schemas['RuleDocument']
export type Delivery = Schemas['DeliveryRecord']
export type AuditEvent = Schemas['AuditEvent']

const PAGE = 50
const LONG_PAGE = 500

export const providersQuery = queryOptions({
  queryKey: ['admin', 'providers'],
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/providers', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export const modelsQuery = queryOptions({
  queryKey: ['admin', 'models'],
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/models', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

/** All versions of all models, newest first; of one model if it is named. */
export const pricesQuery = (model?: string) =>
  queryOptions({
    queryKey: ['admin', 'prices', model ?? null],
    queryFn: () =>
      everything((cursor) =>
        ok(api.GET('/api/admin/prices', { params: { query: { model, cursor, limit: LONG_PAGE } } })),
      ),
  })

export const suggestionsQuery = (model?: string) =>
  queryOptions({
    queryKey: ['admin', 'prices', 'suggestions', model ?? null],
    queryFn: () =>
      everything((cursor) =>
        ok(
          api.GET('/api/admin/price-suggestions', {
            params: { query: { model, cursor, limit: LONG_PAGE } },
          }),
        ),
      ),
  })

/** How many calls of each model are unpriced this month. */
export const unpricedQuery = queryOptions({
  queryKey: ['admin', 'prices', 'unpriced'],
  meta: { live: ['calls'] },
  queryFn: async () => {
    const { items } = await ok(
      api.GET('/api/admin/usage', { params: { query: { group_by: 'model' } } }),
    )
    return new Map(items.flatMap((row) => (row.model ? [[row.model, row.unpriced_calls]] : [])))
  },
})

export const membersQuery = queryOptions({
  queryKey: ['admin', 'members'],
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/members', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export const identitiesQuery = (id: string) =>
  queryOptions({
    queryKey: ['admin', 'identities', id],
    queryFn: async () =>
      (await ok(api.GET('/api/admin/members/{id}/identities', { params: { path: { id } } }))).items,
  })

export type MembersAsked = Omit<
  NonNullable<paths['/api/admin/members']['get']['parameters']['query']>,
  'cursor' | 'limit'
>

/** Those that are asked for, page by page. */
export const foundMembersQuery = (asked: MembersAsked) =>
  infiniteQueryOptions({
    queryKey: ['admin', 'members', 'found', asked],
    placeholderData: keepPreviousData,
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
    queryFn: ({ pageParam: cursor }) =>
      ok(api.GET('/api/admin/members', { params: { query: { ...asked, cursor, limit: PAGE } } })),
  })

/** All allocations, or those of one member. */
export const allocationsQuery = (member_id?: string) =>
  queryOptions({
    queryKey: ['admin', 'allocations', 'of', member_id ?? null],
    queryFn: () =>
      everything((cursor) =>
        ok(
          api.GET('/api/admin/allocations', {
            params: { query: { member_id, cursor, limit: LONG_PAGE } },
          }),
        ),
      ),
  })

export const keysQuery = (member_id?: string) =>
  queryOptions({
    queryKey: ['admin', 'keys', member_id ?? null],
    queryFn: () =>
      everything((cursor) =>
        ok(api.GET('/api/admin/keys', { params: { query: { member_id, cursor, limit: LONG_PAGE } } })),
      ),
  })

/** Pools as owners of alert rules: their names. */
export const poolNamesQuery = queryOptions({
  queryKey: ['admin', 'pools', 'names'],
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/pools', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export const sessionsQuery = queryOptions({
  queryKey: ['admin', 'sessions'],
  meta: { live: ['sessions'] },
  queryFn: () =>
    everything((cursor) =>
      ok(
        api.GET('/api/admin/realtime-sessions', {
          params: { query: { cursor, limit: LONG_PAGE } },
        }),
      ),
    ),
})

export const destinationsQuery = queryOptions({
  queryKey: ['admin', 'destinations'],
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/destinations', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export const rulesQuery = queryOptions({
  queryKey: ['admin', 'rules'],
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/admin/alert-rules', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export interface DeliveryFilters {
  destination_id?: string | undefined
  status?: string | undefined
}

export const deliveriesQuery = (filters: DeliveryFilters) =>
  infiniteQueryOptions({
    queryKey: ['admin', 'deliveries', filters],
    meta: { live: ['alerts'] },
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
    queryFn: ({ pageParam: cursor }) =>
      ok(api.GET('/api/admin/deliveries', { params: { query: { ...filters, cursor, limit: PAGE } } })),
  })

export const deliveryQuery = (id: string) =>
  queryOptions({
    queryKey: ['admin', 'deliveries', 'one', id],
    meta: { live: ['alerts'] },
    queryFn: () => ok(api.GET('/api/admin/deliveries/{id}', { params: { path: { id } } })),
  })

export interface AuditFilters {
  event?: string | undefined
  actor_id?: string | undefined
  object?: string | undefined
  object_id?: string | undefined
  from?: string | undefined
  to?: string | undefined
}

export const auditQuery = (filters: AuditFilters) =>
  infiniteQueryOptions({
    queryKey: ['admin', 'audit', filters],
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
    queryFn: ({ pageParam: cursor }) =>
      ok(api.GET('/api/admin/audit', { params: { query: { ...filters, cursor, limit: PAGE } } })),
  })
