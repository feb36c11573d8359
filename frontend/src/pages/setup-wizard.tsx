/** The first-run wizard: from a provider to a key whose first call is answered. */
import { zodResolver } from '@hookform/resolvers/zod'
import { useMutation, useQuery } from '@tanstack/react-query'
import { type ReactNode, useEffect, useRef, useState } from 'react'
import * as z from 'zod/mini'

import {
  type Allocation,
  type Member,
  type Model,
  type Provider,
  allocationsQuery,
  membersQuery,
  modelsQuery,
  pricesQuery,
  providersQuery,
  suggestionsQuery,
} from '@/api/admin-setup'
import { ApiError, api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { readCount, readUsd } from '@/lib/money'
import { Button, LinkButton } from '@/ui/button'
import { Snippet } from '@/ui/copy'
import { SelectField, TextField } from '@/ui/field'
import { Money } from '@/ui/format'
import { Icon } from '@/ui/icons'
import { Answered, Card, Empty, Page, Problem } from '@/ui/page'
import { toast } from '@/ui/toast'

import { KeyForm, KeyShown } from './member-key-form'
import { MemberForm } from './member-form'
import { ModelForm, ProviderForm } from './model-forms'
import { PriceForm } from './model-prices'
import { ProviderTest, testProvider } from './provider-test'
import { EditorForm, useEditor, useMayWrite } from './setup-parts'

const STEPS = ['provider', 'model', 'price', 'member', 'allocation', 'key', 'call'] as const
type Step = (typeof STEPS)[number]

interface Made {
  provider?: Provider
  model?: Model
  /** Whether it has a price in force. */
  priced?: boolean
  member?: Member
  allocation?: Allocation
  secret?: string
}

export default function SetupWizard() {
  const { t } = useWords()
  const writes = useMayWrite()
  const [step, setStep] = useState<Step>('provider')
  const [made, setMade] = useState<Made>({})
  const head = useRef<HTMLHeadingElement>(null)
  const at = STEPS.indexOf(step)
  const began = useRef(false)
  // Who hears the page instead of seeing it is told which step is next.
  useEffect(() => {
    if (began.current) head.current?.focus()
    began.current = true
  }, [step])
  const go = (next: Step, more: Made = {}) => {
    setMade((known) => ({ ...known, ...more }))
    setStep(next)
  }
  if (!writes) {
    return (
      <Page title={t('wizard.title')}>
        <Card>
          <Empty icon="wand" title={t('wizard.adminsOnly')} />
        </Card>
      </Page>
    )
  }
  return (
    <Page title={t('wizard.title')} about={t('wizard.about')}>
      <div className="grid gap-5 lg:grid-cols-[15rem_1fr] lg:items-start">
        <Steps at={at} made={made} onGo={(to) => setStep(to)} />
        <Card
          title={
            <span ref={head} tabIndex={-1} className="outline-none">
              {t('wizard.step', { n: at + 1, of: STEPS.length })} · {t(`wizard.steps.${step}`)}
            </span>
          }
        >
          <p className="mb-4 max-w-prose text-soft">{t(`wizard.hints.${step}`)}</p>
          {step === 'provider' && <ProviderStep onDone={(provider) => go('model', { provider })} />}
          {step === 'model' && <ModelStep provider={made.provider!} onDone={(model) => go('price', { model })} />}
          {step === 'price' && (
            <PriceStep model={made.model!} onDone={(priced) => go('member', { priced })} />
          )}
          {step === 'member' && <MemberStep onDone={(member) => go('allocation', { member })} />}
          {step === 'allocation' && (
            <AllocationStep
              model={made.model!}
              member={made.member!}
              onDone={(allocation) => go('key', { allocation })}
            />
          )}
          {step === 'key' && (
            <KeyForm
              memberId={made.member!.id}
              allocations={[made.allocation!]}
              start={{ name: t('wizard.keyName') }}
              onDone={({ key }) => go('call', { secret: key })}
            />
          )}
          {step === 'call' && <CallStep model={made.model!} secret={made.secret!} member={made.member!} />}
        </Card>
      </div>
    </Page>
  )
}

function Steps({ at, made, onGo }: { at: number; made: Made; onGo: (step: Step) => void }) {
  const { t } = useWords()
  const names: Partial<Record<Step, string | undefined>> = {
    provider: made.provider?.name,
    model: made.model?.slug,
    price: made.priced === undefined ? undefined : made.priced ? t('adminModels.priced') : t('common.unpriced'),
    member: made.member?.email,
    allocation: made.allocation?.name,
    key: made.secret && t('wizard.keyMade'),
  }
  return (
    <ol className="flex flex-col gap-1 max-lg:hidden" aria-label={t('wizard.progress')}>
      {STEPS.map((one, n) => {
        const done = n < at
        // A key is made once; the steps before stand for what was made in them.
        const back = done && at < STEPS.length - 1
        const inside = (
          <>
            <span
              className={`grid size-6 flex-none place-items-center rounded-full text-xs font-semibold ${done ? 'bg-accent text-on-accent' : n === at ? 'bg-accent-wash text-accent-strong ring-2 ring-accent' : 'bg-sunk text-soft'}`}
            >
              {done ? <Icon name="check" /> : n + 1}
            </span>
            <span className="min-w-0 text-left">
              <span className={n === at ? 'font-semibold' : ''}>{t(`wizard.steps.${one}`)}</span>
              {done && names[one] && <span className="block truncate text-xs text-soft">{names[one]}</span>}
            </span>
          </>
        )
        return (
          <li key={one} aria-current={n === at ? 'step' : undefined}>
            {back ? (
              <button
                type="button"
                className="flex w-full min-w-0 items-start gap-2.5 rounded-lg px-2 py-1.5 hover:bg-sunk"
                onClick={() => onGo(one)}
              >
                {inside}
              </button>
            ) : (
              <span className="flex min-w-0 items-start gap-2.5 px-2 py-1.5">{inside}</span>
            )}
          </li>
        )
      })}
    </ol>
  )
}

/** Going on with what there is, instead of making another one. */
function Choice<Of>({
  label,
  items,
  id,
  name,
  onUse,
  children,
}: {
  label: string
  items: readonly Of[]
  id: (item: Of) => string
  name: (item: Of) => string
  onUse: (item: Of) => void
  /** The form that makes another one. */
  children: ReactNode
}) {
  const { t } = useWords()
  const [picked, setPicked] = useState<string | null>(null)
  const [making, setMaking] = useState(items.length === 0)
  const chosen = items.find((one) => id(one) === picked) ?? items[0]
  if (making || chosen === undefined) {
    return (
      <>
        {items.length > 0 && (
          <div className="mb-4">
            <Button onClick={() => setMaking(false)}>{t('wizard.useKnown')}</Button>
          </div>
        )}
        {children}
      </>
    )
  }
  return (
    <div className="flex flex-col gap-4">
      <SelectField label={label} value={id(chosen)} onChange={(event) => setPicked(event.target.value)}>
        {items.map((one) => (
          <option key={id(one)} value={id(one)}>
            {name(one)}
          </option>
        ))}
      </SelectField>
      <div className="flex flex-wrap justify-end gap-2">
        <Button icon="plus" onClick={() => setMaking(true)}>
          {t('wizard.another')}
        </Button>
        <Button look="main" onClick={() => onUse(chosen)}>
          {t('wizard.next')}
        </Button>
      </div>
    </div>
  )
}

function ProviderStep({ onDone }: { onDone: (provider: Provider) => void }) {
  const { t } = useWords()
  const providers = useQuery(providersQuery)
  const [added, setAdded] = useState<Provider | null>(null)
  const test = useMutation({ mutationFn: testProvider })
  if (added !== null) {
    return (
      <div className="flex flex-col gap-4">
        {test.isPending ? (
          <p role="status">{t('wizard.testing', { name: added.name })}</p>
        ) : (
          <ProviderTest result={test.data} error={test.error} />
        )}
        <div className="flex flex-wrap justify-end gap-2">
          {test.data?.ok !== true && !test.isPending && (
            <Button onClick={() => setAdded(null)}>{t('wizard.again')}</Button>
          )}
          <Button look="main" busy={test.isPending} onClick={() => onDone(added)}>
            {t('wizard.next')}
          </Button>
        </div>
      </div>
    )
  }
  return (
    <Answered of={providers}>
      {(known) => (
        <Choice
          label={t('adminModels.provider')}
          items={known}
          id={(one) => one.id}
          name={(one) => one.name}
          onUse={onDone}
        >
          <ProviderForm
            onDone={(provider) => {
              test.mutate(provider.id)
              setAdded(provider)
            }}
          />
        </Choice>
      )}
    </Answered>
  )
}

function ModelStep({ provider, onDone }: { provider: Provider; onDone: (model: Model) => void }) {
  const { t } = useWords()
  const models = useQuery(modelsQuery)
  return (
    <Answered of={models}>
      {(known) => (
        <Choice
          label={t('adminModels.model')}
          items={known.filter((one) => one.provider_id === provider.id)}
          id={(one) => one.slug}
          name={(one) => one.slug}
          onUse={onDone}
        >
          <ModelForm providers={[provider]} onDone={onDone} />
        </Choice>
      )}
    </Answered>
  )
}

function PriceStep({ model, onDone }: { model: Model; onDone: (priced: boolean) => void }) {
  const { t } = useWords()
  const prices = useQuery(pricesQuery(model.slug))
  const suggestions = useQuery(suggestionsQuery(model.slug))
  const [taken, setTaken] = useState(false)
  const suggestion = suggestions.data?.[0]
  const rates = suggestion?.rates ?? []
  return (
    <Answered of={prices}>
      {(versions) =>
        versions.some((one) => one.in_force) ? (
          <div className="flex flex-wrap items-center justify-between gap-3">
            <p className="flex items-center gap-2">
              <Icon name="check" /> {t('wizard.pricedAlready', { name: model.slug })}
            </p>
            <Button look="main" onClick={() => onDone(true)}>
              {t('wizard.next')}
            </Button>
          </div>
        ) : (
          <>
            {rates.length > 0 && !taken && (
              <div className="mb-4 flex flex-wrap items-center justify-between gap-3 rounded-lg bg-accent-wash px-3 py-2 text-accent-strong">
                <p>{t('wizard.suggested', { name: model.slug })}</p>
                <Button icon="wand" onClick={() => setTaken(true)}>
                  {t('adminPrices.take')}
                </Button>
              </div>
            )}
            <PriceForm
              key={String(taken)}
              slug={model.slug}
              rates={taken ? rates : []}
              onDone={() => onDone(true)}
            />
            <div className="mt-2 flex justify-end">
              <Button look="quiet" onClick={() => onDone(false)}>
                {t('wizard.later')}
              </Button>
            </div>
          </>
        )
      }
    </Answered>
  )
}

function MemberStep({ onDone }: { onDone: (member: Member) => void }) {
  const { t } = useWords()
  const members = useQuery(membersQuery)
  return (
    <Answered of={members}>
      {(known) => (
        <Choice
          label={t('adminMembers.member')}
          items={known.filter((one) => one.status === 'active')}
          id={(one) => one.id}
          name={(one) => (one.display_name ? `${one.display_name} (${one.email})` : one.email)}
          onUse={onDone}
        >
          <MemberForm onDone={onDone} />
        </Choice>
      )}
    </Answered>
  )
}

const allocationShape = z.object({
  name: z.string().check(z.trim(), z.minLength(1, 'required')),
  usd: z.string().check(z.refine((text) => text.trim() === '' || readUsd(text) !== null, { error: 'usd' })),
  tokens: z
    .string()
    .check(z.refine((text) => text.trim() === '' || readCount(text) !== null, { error: 'count' })),
})

type AllocationFields = z.infer<typeof allocationShape>

function AllocationStep(props: { model: Model; member: Member; onDone: (allocation: Allocation) => void }) {
  const { t } = useWords()
  const { model, member, onDone } = props
  const allocations = useQuery(allocationsQuery(member.id))
  return (
    <Answered of={allocations}>
      {(known) => (
        <Choice
          label={t('adminMembers.allocation')}
          items={known.filter((one) => one.models.includes(model.slug) && one.status === 'active')}
          id={(one) => one.id}
          name={(one) => one.name}
          onUse={onDone}
        >
          <AllocationForm {...props} />
        </Choice>
      )}
    </Answered>
  )
}

function AllocationForm({
  model,
  member,
  onDone,
}: {
  model: Model
  member: Member
  onDone: (allocation: Allocation) => void
}) {
  const { t } = useWords()
  const refresh = useRefresh()
  const editor = useEditor<AllocationFields>({
    resolver: zodResolver(allocationShape),
    start: { name: member.display_name || member.email, usd: '10', tokens: '' },
    save: async ({ name, usd, tokens }) => {
      const done = await ok(
        api.POST('/api/admin/allocations', {
          body: {
            member_id: member.id,
            models: [model.slug],
            name,
            quota_cost_usd_per_month: usd.trim() ? readUsd(usd) : null,
            quota_tokens_per_month: tokens.trim() ? readCount(tokens) : null,
            overrun_policy: 'strict',
            ledger_outage: 'deny',
            unpriced: 'allow',
            floor_tokens: 0,
            locked: false,
            service: false,
          },
        }),
      )
      await refresh(['admin', 'allocations'])
      toast(t('adminSetup.saved', { name }))
      onDone(done)
    },
  })
  const { tied } = editor
  return (
    <EditorForm editor={editor} action={t('wizard.addAllocation')}>
      <TextField label={t('adminModels.name')} maxLength={200} autoComplete="off" {...tied('name')} />
      <div className="grid gap-4 sm:grid-cols-2">
        <TextField
          label={t('limits.usd.month')}
          inputMode="decimal"
          autoComplete="off"
          hint={t('wizard.capHint')}
          {...tied('usd', 'quota_cost_usd_per_month')}
        />
        <TextField
          label={t('limits.tokens.month')}
          autoComplete="off"
          hint={t('wizard.capHint')}
          {...tied('tokens', 'quota_tokens_per_month')}
        />
      </div>
    </EditorForm>
  )
}

interface Answer {
  text: string
  cost: string | null
}

/** How each kind of call is asked, and where its answer says something. */
const CALLS = {
  'chat/completions': {
    body: (text: string) => ({ messages: [{ role: 'user', content: text }], max_tokens: 32 }),
    read: (said: any) => said.choices?.[0]?.message?.content,
  },
  responses: {
    body: (text: string) => ({ input: text, max_output_tokens: 32 }),
    read: (said: any) => said.output?.[0]?.content?.[0]?.text,
  },
  messages: {
    body: (text: string) => ({ messages: [{ role: 'user', content: text }], max_tokens: 32 }),
    read: (said: any) => said.content?.[0]?.text,
  },
  embeddings: {
    body: (text: string) => ({ input: text }),
    read: (said: any) => `[${(said.data?.[0]?.embedding ?? []).slice(0, 4).join(', ')}, …]`,
  },
} as const

async function call(path: keyof typeof CALLS, model: string, secret: string, text: string): Promise<Answer> {
  let response: Response
  try {
    response = await fetch(`/v1/${path}`, {
      method: 'POST',
      credentials: 'omit',
      headers: { authorization: `Bearer ${secret}`, 'content-type': 'application/json' },
      body: JSON.stringify({ model, ...CALLS[path].body(text) }),
    })
  } catch {
    throw new ApiError(0, null)
  }
  const said = await response.json().catch(() => ({}))
  if (!response.ok) {
    const detail = String(said.error?.message ?? `HTTP ${response.status}`)
    const problem = {
      type: 'about:blank',
      title: detail,
      status: response.status,
      detail,
      // Not one of ours: the data plane and the provider have their own.
      code: '',
      values: {},
    }
    // What the provider says of itself is worth reading, whatever its status.
    throw new ApiError(response.status < 500 ? response.status : 400, problem, response)
  }
  return {
    text: String(CALLS[path].read(said) ?? ''),
    cost: response.headers.get('x-spendgate-cost-usd'),
  }
}

function CallStep({ model, secret, member }: { model: Model; secret: string; member: Member }) {
  const { t } = useWords()
  const path = (Object.keys(CALLS) as (keyof typeof CALLS)[]).find(
    (one) => model.endpoints === null || model.endpoints.includes(one),
  )
  const text = t('wizard.question')
  const test = useMutation({ mutationFn: () => call(path!, model.slug, secret, text) })
  const base = `${window.location.origin}/v1`
  return (
    <div className="flex flex-col gap-5">
      <KeyShown secret={secret} />
      {path && (
        <Snippet
          label={t('wizard.curl')}
          code={`curl ${base}/${path} \\\n  -H "Authorization: Bearer ${secret}" \\\n  -H "Content-Type: application/json" \\\n  -d '${JSON.stringify({ model: model.slug, ...CALLS[path].body(text) })}'`}
        />
      )}
      {path ? (
        <div>
          <Button look={test.data ? 'plain' : 'main'} busy={test.isPending} onClick={() => test.mutate()}>
            {t('wizard.call')}
          </Button>
        </div>
      ) : (
        <p className="text-soft">{t('wizard.noCall')}</p>
      )}
      {test.error && <Problem error={test.error} />}
      {test.data && (
        <section
          role="status"
          aria-label={t('wizard.answer')}
          className="flex flex-col gap-2 rounded-lg bg-accent-wash p-4 text-accent-strong"
        >
          <p className="flex items-center gap-2 font-semibold">
            <Icon name="check" />
            {t('wizard.works')}
          </p>
          <p className="text-ink">{test.data.text}</p>
          <p className="text-xs">
            {t('wizard.cost')} <Money usd={test.data.cost} />
          </p>
        </section>
      )}
      {(test.data || !path) && (
        <div className="flex flex-wrap gap-2">
          <LinkButton look="main" to="/">
            {t('wizard.finish')}
          </LinkButton>
          <LinkButton to="/admin/members" search={{ id: member.id }}>
            {t('wizard.seeMember')}
          </LinkButton>
        </div>
      )}
    </div>
  )
}
