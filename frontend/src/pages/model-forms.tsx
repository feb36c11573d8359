/** The forms of providers and models; the first-run wizard uses them as well. */
import { zodResolver } from '@hookform/resolvers/zod'
import * as z from 'zod/mini'

import { type Model, type Provider } from '@/api/admin-setup'
import { type Schemas, api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { readCount } from '@/lib/money'
import { CheckField, SelectField, TextField } from '@/ui/field'
import { toast } from '@/ui/toast'

import { Boxes, EditorForm, differing, useEditor } from './setup-parts'

const KINDS = ['openai', 'azure', 'mistral', 'anthropic', 'cohere', 'compatible'] as const

/** Where each kind is by default; the others have addresses of their own. */
const HOMES: Partial<Record<(typeof KINDS)[number], string>> = {
  openai: 'https://api.openai.com/v1',
  mistral: 'https://api.mistral.ai',
  anthropic: 'https://api.anthropic.com',
  cohere: 'https://api.cohere.com',
}

const providerShape = z.object({
  name: z.string().check(z.trim(), z.minLength(1, 'required')),
  kind: z.enum(KINDS),
  base_url: z.string().check(z.trim(), z.regex(/^https?:\/\/\S+$/, 'address')),
  api_key: z.string().check(z.trim()),
  forget: z.boolean(),
})

type ProviderFields = z.infer<typeof providerShape>

interface Ends<Made> {
  onClose?: () => void
  onDone: (made: Made) => void
}

export function ProviderForm({ provider, onClose, onDone }: { provider?: Provider } & Ends<Provider>) {
  const { t } = useWords()
  const refresh = useRefresh()
  const editor = useEditor<ProviderFields>({
    resolver: zodResolver(providerShape),
    start: {
      name: provider?.name ?? '',
      kind: provider?.kind ?? 'openai',
      base_url: provider?.base_url ?? HOMES.openai!,
      api_key: '',
      forget: false,
    },
    save: async ({ name, kind, base_url, api_key, forget }) => {
      const said = { name, kind, base_url }
      const key = forget ? { api_key: null } : api_key ? { api_key } : {}
      const done = provider
        ? await ok(
            api.PATCH('/api/admin/providers/{id}', {
              params: { path: { id: provider.id } },
              body: { ...differing<typeof said>(provider, said), ...key },
            }),
          )
        : await ok(api.POST('/api/admin/providers', { body: { ...said, ...key } }))
      await refresh(['admin', 'providers'])
      toast(t('adminSetup.saved', { name }))
      onDone(done)
    },
  })
  const { form, tied } = editor
  const [kind, forget] = form.watch(['kind', 'forget'])
  const home = (of: keyof typeof HOMES) => {
    // An address that somebody wrote stays.
    const written = form.getValues('base_url')
    if (written === '' || Object.values(HOMES).includes(written)) form.setValue('base_url', HOMES[of] ?? '')
  }
  return (
    <EditorForm
      editor={editor}
      action={provider ? t('common.save') : t('adminModels.addProvider')}
      {...(onClose ? { onClose } : {})}
    >
      <div className="grid gap-4 sm:grid-cols-2">
        <TextField label={t('adminModels.name')} autoComplete="off" maxLength={200} {...tied('name')} />
        <SelectField
          label={t('adminModels.kind')}
          {...tied('kind')}
          onChange={(event) => {
            void form.register('kind').onChange(event)
            if (!provider) home(event.target.value as keyof typeof HOMES)
          }}
        >
          {KINDS.map((one) => (
            <option key={one} value={one}>
              {t(`adminModels.kinds.${one}`)}
            </option>
          ))}
        </SelectField>
      </div>
      <TextField
        label={t('adminModels.baseUrl')}
        type="url"
        autoComplete="off"
        spellCheck={false}
        hint={t(`adminModels.baseUrlHint.${kind}`)}
        {...tied('base_url')}
      />
      {!forget && (
        <TextField
          label={t('adminModels.credential')}
          type="password"
          autoComplete="new-password"
          hint={provider?.has_credential ? t('adminModels.credentialKept') : t('adminModels.credentialHint')}
          {...tied('api_key')}
        />
      )}
      {provider?.has_credential && (
        <CheckField label={t('adminModels.forget')} hint={t('adminModels.forgetHint')} {...form.register('forget')} />
      )}
    </EditorForm>
  )
}

export const ENDPOINTS = [
  'chat/completions',
  'responses',
  'messages',
  'embeddings',
  'ocr',
  'audio/speech',
  'audio/transcriptions',
  'realtime',
  'images/generations',
  'moderations',
] as const

type Endpoint = (typeof ENDPOINTS)[number]

const count = z.string().check(
  z.refine((text) => text.trim() === '' || (readCount(text) ?? 0) > 0, { error: 'count' }),
)

const modelShape = z.object({
  slug: z.string().check(z.trim(), z.regex(/^[!-~]{1,200}$/, 'slug')),
  provider_id: z.string().check(z.minLength(1, 'required')),
  upstream_model: z.string().check(z.trim()),
  endpoints: z.array(z.enum(ENDPOINTS)),
  context_window: count,
  max_output_tokens: count,
  bytes_per_token: z.string().check(z.regex(/^[1-8]$/, 'bytes')),
  image_tokens_max: count.check(z.minLength(1, 'count')),
})

type ModelFields = z.infer<typeof modelShape>

/** As it is stored: empty is not known. */
const counted = (text: string) => (text.trim() === '' ? null : readCount(text))

export function ModelForm({
  model,
  providers,
  onClose,
  onDone,
}: { model?: Model; providers: Provider[] } & Ends<Model>) {
  const { t } = useWords()
  const refresh = useRefresh()
  const editor = useEditor<ModelFields>({
    resolver: zodResolver(modelShape),
    start: {
      slug: model?.slug ?? '',
      provider_id: model?.provider_id ?? providers[0]?.id ?? '',
      upstream_model: model && model.upstream_model !== model.slug ? model.upstream_model : '',
      endpoints: (model?.endpoints ?? []) as Endpoint[],
      context_window: String(model?.context_window ?? ''),
      max_output_tokens: String(model?.max_output_tokens ?? ''),
      bytes_per_token: String(model?.bytes_per_token ?? 2),
      image_tokens_max: String(model?.image_tokens_max ?? 3000),
    },
    save: async (given) => {
      const said = {
        provider_id: given.provider_id,
        upstream_model: given.upstream_model || given.slug,
        endpoints: given.endpoints.length ? given.endpoints : null,
        context_window: counted(given.context_window),
        max_output_tokens: counted(given.max_output_tokens),
        bytes_per_token: Number(given.bytes_per_token),
        image_tokens_max: counted(given.image_tokens_max)!,
      }
      const done = model
        ? await ok(
            api.PATCH('/api/admin/models/{slug}', {
              params: { path: { slug: model.slug } },
              body: differing<Schemas['ModelPatch']>(model as Schemas['ModelPatch'], said),
            }),
          )
        : await ok(api.POST('/api/admin/models', { body: { ...said, slug: given.slug } }))
      await refresh(['admin', 'models'], ['admin', 'prices'])
      toast(t('adminSetup.saved', { name: given.slug }))
      onDone(done)
    },
  })
  const { form, tied } = editor
  return (
    <EditorForm
      editor={editor}
      action={model ? t('common.save') : t('adminModels.addModel')}
      {...(onClose ? { onClose } : {})}
    >
      <div className="grid gap-4 sm:grid-cols-2">
        <TextField
          label={t('adminModels.slug')}
          hint={model ? t('adminModels.slugStays') : t('adminModels.slugHint')}
          autoComplete="off"
          spellCheck={false}
          readOnly={model !== undefined}
          {...tied('slug')}
        />
        <SelectField label={t('adminModels.provider')} {...tied('provider_id')}>
          {providers.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name}
            </option>
          ))}
        </SelectField>
        <TextField
          label={t('adminModels.upstream')}
          hint={t('adminModels.upstreamHint')}
          autoComplete="off"
          spellCheck={false}
          className="sm:col-span-2"
          {...tied('upstream_model')}
        />
        <TextField
          label={t('adminModels.context')}
          hint={t('adminModels.contextHint')}
          autoComplete="off"
          {...tied('context_window')}
        />
        <TextField
          label={t('adminModels.most')}
          hint={t('adminModels.mostHint')}
          autoComplete="off"
          {...tied('max_output_tokens')}
        />
      </div>
      <Boxes legend={t('adminModels.endpoints')} hint={t('adminModels.endpointsHint')} error={tied('endpoints').error}>
        {ENDPOINTS.map((one) => (
          <CheckField
            key={one}
            value={one}
            label={<span className="font-mono text-xs font-normal">{one}</span>}
            {...form.register('endpoints')}
          />
        ))}
      </Boxes>
      <details>
        <summary className="w-fit rounded font-medium text-accent">{t('adminModels.estimates')}</summary>
        <div className="mt-3 grid gap-4 sm:grid-cols-2">
          <SelectField
            label={t('adminModels.bytesPerToken')}
            hint={t('adminModels.bytesPerTokenHint')}
            {...tied('bytes_per_token')}
          >
            {[1, 2, 3, 4, 5, 6, 7, 8].map((one) => (
              <option key={one}>{one}</option>
            ))}
          </SelectField>
          <TextField
            label={t('adminModels.imageTokens')}
            hint={t('adminModels.imageTokensHint')}
            autoComplete="off"
            {...tied('image_tokens_max')}
          />
        </div>
      </details>
    </EditorForm>
  )
}
